// The convolutions of a bottleneck as products of rows (see row_gemm.h).
#pragma once
#include "row_gemm.h"

namespace laud::cuda {

// Weights (outputs, taps, inputs / groups).
struct Conv {
  Type type;
  const void *weight, *bias;
  int64_t inputs, outputs, groups;
};

// Units of an index, the first `count` of which are active; null: all of them.
struct UnitList {
  const int32_t *index, *count;
  int64_t units;
};

// Whether a launch's rows can be counted in 32 bits.
bool fits(const PatchGrid& grid, const MapSize& in);

// A 1x1 convolution on listed patches of `grid`, into the map; it picks outputs.
RowGemm conv1x1_positions(const Conv& conv, const MapSize& in, const PatchGrid& grid,
                          int64_t stride, const UnitList& list, ChannelList channels);

// A 3x3 convolution and ReLU on listed patches of `grid`, into a list of rows; it picks
// inputs and outputs.
RowGemm conv3x3_patches(const Conv& conv, const MapSize& in, const PatchGrid& grid,
                        const Window& window, const UnitList& list, ChannelList channels);

// A 1x1 convolution of a list of rows, added to patches of a map, and ReLU; it picks inputs.
RowGemm conv1x1_add_patches(const Conv& conv, const PatchGrid& grid, const UnitList& list,
                            ChannelList channels);

}  // namespace laud::cuda
