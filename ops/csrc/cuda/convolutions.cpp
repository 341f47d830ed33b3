#include "convolutions.h"

namespace laud::cuda {
namespace {

RowGemm gemm_of(const Conv& conv, const PatchGrid& grid, const MapSize& in, const Window& window,
                int taps, const UnitList& list, const ChannelList& channels) {
  RowGemm gemm;
  gemm.type = conv.type;
  gemm.rows = RowMap::of(grid, in, window, taps, list.units);
  gemm.rows.index = list.index;
  gemm.rows.count = list.count;
  gemm.weight = conv.weight;
  gemm.bias = conv.bias;
  gemm.in_columns = int32_t(conv.inputs);
  gemm.out_columns = int32_t(conv.outputs);
  gemm.groups = int32_t(conv.groups);
  gemm.depth = int32_t(conv.inputs / conv.groups);
  gemm.columns = int32_t(conv.outputs / conv.groups);
  gemm.channels = channels;
  return gemm;
}

}  // namespace

bool fits(const PatchGrid& grid, const MapSize& in) {
  return in.positions() <= kMostRows && grid.patches() * grid.area() <= kMostRows;
}

RowGemm conv1x1_positions(const Conv& conv, const MapSize& in, const PatchGrid& grid,
                          int64_t stride, const UnitList& list, ChannelList channels) {
  channels.picks_outputs = channels.index != nullptr;
  return gemm_of(conv, grid, in, {stride, 1}, 1, list, channels);
}

RowGemm conv3x3_patches(const Conv& conv, const MapSize& in, const PatchGrid& grid,
                        const Window& window, const UnitList& list, ChannelList channels) {
  channels.picks_inputs = channels.picks_outputs = channels.index != nullptr;
  RowGemm gemm = gemm_of(conv, grid, in, window, 9, list, channels);
  gemm.rows.writes_list = true;
  gemm.relu = true;
  return gemm;
}

RowGemm conv1x1_add_patches(const Conv& conv, const PatchGrid& grid, const UnitList& list,
                            ChannelList channels) {
  channels.picks_inputs = channels.index != nullptr;
  RowGemm gemm = gemm_of(conv, grid, grid.map, {1, 1}, 1, list, channels);
  gemm.rows.reads_list = true;
  gemm.relu = true;
  return gemm;
}

}  // namespace laud::cuda
