// The launchers of the CUDA kernels, run on a CPU, for Python.
#include "../../../ops/csrc/cuda/convolutions.h"
#include "../../../ops/csrc/cuda/excite.h"
#include "../../../ops/csrc/cuda/maskers.h"
#include "../../../ops/csrc/cuda/row_copies.h"
#include "../../../ops/csrc/cuda/stem.h"
#include "../../../ops/csrc/cuda/units.h"

using namespace laud;
using namespace laud::cuda;

namespace {

Launch device{nullptr, 1, 0};

struct Arguments {
  const int64_t* at;

  int64_t integer() { return *at++; }
  template <typename T = void>
  T* pointer() {
    return reinterpret_cast<T*>(*at++);
  }
  MapSize size() { return {integer(), integer(), integer()}; }  // braces: in this order
  UnitList list() { return {pointer<int32_t>(), pointer<int32_t>(), integer()}; }
  ChannelList channels() {
    auto* index = pointer<int32_t>();
    auto* count = pointer<int32_t>();
    const int64_t groups = integer(), size = integer();
    return index ? ChannelList::of(index, count, groups, size) : ChannelList{};
  }
  Conv conv() {
    return {Type(integer()), pointer(), pointer(), integer(), integer(), integer()};
  }
  int run(RowGemm gemm) {
    gemm.in = pointer();
    gemm.add = pointer();
    gemm.out = pointer();
    gemm.tf32 = integer() != 0;
    gemm.logit_weight = pointer<float>();
    gemm.logits = pointer<float>();
    gemm.active = pointer<bool>();
    gemm.pieces = pointer<float>();
    return launch_row_gemm(gemm, device);
  }
};

}  // namespace

extern "C" {

void set_device(int64_t multiprocessors, int64_t shared_bytes, int64_t descending) {
  device = {nullptr, int(multiprocessors), int(shared_bytes)};
  emulation::descending = descending != 0;
  emulation::bank_conflicts = 0;
}

int64_t bank_conflicts() { return emulation::bank_conflicts; }

int64_t loads() { return emulation::loads; }

int run_compact(const int64_t* arguments) {
  Arguments a{arguments};
  auto* flags = a.pointer<uint8_t>();
  const int64_t rows = a.integer(), units = a.integer();
  auto* index = a.pointer<int32_t>();
  auto* count = a.pointer<int32_t>();
  std::vector<int32_t> scratch(size_t(compact_scratch(rows, units)), -1);
  emulation::loads = 0;
  return launch_compact(flags, rows, units, scratch.data(), index, count, device);
}

int run_halo_flags(const int64_t* arguments) {
  Arguments a{arguments};
  const UnitList list = a.list();
  const MapSize in = a.size();
  const int64_t granularity = a.integer();
  const Window window{a.integer(), a.integer()};
  return launch_halo_flags(list.index, list.count, list.units,
                           PatchGrid::of(in.strided(window.stride), granularity), in, window,
                           a.pointer<uint8_t>(), device);
}

int run_conv1x1_positions(const int64_t* arguments) {
  Arguments a{arguments};
  const Conv conv = a.conv();
  const MapSize in = a.size();
  const int64_t granularity = a.integer(), stride = a.integer(), relu = a.integer();
  const UnitList list = a.list();
  const auto grid = PatchGrid::of(in.strided(stride), granularity);
  RowGemm gemm = conv1x1_positions(conv, in, grid, stride, list, a.channels());
  gemm.relu = relu != 0;
  return a.run(gemm);
}

int run_conv3x3_patches(const int64_t* arguments) {
  Arguments a{arguments};
  const Conv conv = a.conv();
  const MapSize in = a.size();
  const int64_t granularity = a.integer();
  const Window window{a.integer(), a.integer()};
  const UnitList list = a.list();
  return a.run(conv3x3_patches(conv, in, PatchGrid::of(in.strided(window.stride), granularity),
                               window, list, a.channels()));
}

int run_conv1x1_add_patches(const int64_t* arguments) {
  Arguments a{arguments};
  const Conv conv = a.conv();
  const MapSize out = a.size();
  const int64_t granularity = a.integer();
  const UnitList list = a.list();
  return a.run(conv1x1_add_patches(conv, PatchGrid::of(out, granularity), list, a.channels()));
}

int run_patch_mask(const int64_t* arguments) {
  Arguments a{arguments};
  Map x;
  x.type = Type(a.integer());
  x.values = a.pointer();
  x.size = a.size();
  x.channels = a.integer();
  auto* weight = a.pointer<float>();
  auto* bias = a.pointer<float>();
  const int64_t window = a.integer();
  auto* logits = a.pointer<float>();
  if (const auto error = launch_logits(x, weight, logits, device)) return error;
  return launch_threshold(logits, bias, PatchGrid::of(x.size, window), a.pointer<bool>(), device);
}

int run_sums_mask(const int64_t* arguments) {
  Arguments a{arguments};
  const MapSize size = a.size();
  const auto grid = PatchGrid::of(size, a.integer());
  const UnitList list = a.list();
  PatchSums s;
  s.rows = RowMap::of(grid, size, {1, 1}, 1, list.units);
  s.rows.index = list.index;
  s.rows.count = list.count;
  s.sums = a.pointer<float>();
  s.whole = a.pointer<float>();
  s.listed = a.pointer<float>();
  s.total = a.pointer<float>();
  s.channels = int32_t(a.integer());
  auto* weight = a.pointer<float>();
  auto* bias = a.pointer<float>();
  return launch_sums_mask(s, weight, bias, grid, a.pointer<bool>(), device);
}

int run_stem_pool(const int64_t* arguments) {
  Arguments a{arguments};
  StemPool pool;
  pool.type = Type(a.integer());
  pool.in = a.pointer(), pool.bias = a.pointer(), pool.out = a.pointer();
  pool.size = a.size();
  pool.channels = a.integer(), pool.side = a.integer(), pool.stride = a.integer();
  return launch_stem_pool(pool, device);
}

int run_position_means(const int64_t* arguments) {
  Arguments a{arguments};
  Map x;
  x.type = Type(a.integer());
  x.values = a.pointer();
  x.size = a.size();
  x.channels = a.integer();
  return launch_position_means(x, a.pointer<float>(), device);
}

int run_excite(const int64_t* arguments) {
  Arguments a{arguments};
  Excitation e;
  e.type = Type(a.integer());
  e.rows = a.pointer();
  const MapSize out = a.size();
  const int64_t granularity = a.integer();
  const UnitList list = a.list();
  e.map = RowMap::of(PatchGrid::of(out, granularity), out, {1, 1}, 1, list.units);
  e.map.index = list.index;
  e.map.count = list.count;
  e.channels = int32_t(a.integer());
  e.hidden = int32_t(a.integer());
  e.weight1 = a.pointer(), e.bias1 = a.pointer();
  e.weight2 = a.pointer(), e.bias2 = a.pointer();
  e.means = a.pointer<float>(), e.scales = a.pointer<float>();
  return launch_excite(e, device);
}

int run_gather_rows(const int64_t* arguments) {
  Arguments a{arguments};
  const Type type = Type(a.integer());
  const ListedRows rows{a.pointer<int64_t>(), a.integer(), a.integer(), a.integer()};
  auto* from = a.pointer();
  return launch_gather_rows(type, rows, from, a.pointer(), device);
}

int run_add_rows(const int64_t* arguments) {
  Arguments a{arguments};
  const Type type = Type(a.integer());
  const ListedRows rows{a.pointer<int64_t>(), a.integer(), a.integer(), a.integer()};
  auto* add = a.pointer();
  return launch_add_rows(type, rows, add, a.pointer(), device);
}

// The arithmetic that CPU and CUDA share.

void divide(int64_t by, int64_t count, const int32_t* n, int32_t* quotients) {
  const Divider divider = Divider::by(by);
  for (int64_t i = 0; i < count; i++) quotients[i] = divider.quotient(n[i]);
}

void chunk_places(int64_t rows, int32_t* places) {
  for (int32_t r = 0; r < rows; r++)
    for (int32_t c = 0; c < kRowChunks; c++) places[r * kRowChunks + c] = chunk_place(r, c);
}

// tiles (count, 4): sample, row tile, group, column tile; returns how many there are.
int64_t tiles(int64_t samples, int64_t rows, int64_t groups, int64_t columns, int64_t tile_rows,
              int64_t tile_columns, int64_t room, int32_t* to) {
  const auto grid =
      TileGrid::of(samples, rows, groups, columns, int(tile_rows), int(tile_columns));
  for (int32_t i = 0; i < grid.tiles() && i < room; i++) {
    const TileId id = grid.at(i);
    const int32_t values[] = {id.sample, id.row_tile, id.group, id.column_tile};
    for (int v = 0; v < 4; v++) to[i * 4 + v] = values[v];
  }
  return grid.tiles();
}

// rows (listed * area, 3): in, out, taps.
void map_rows(const int64_t* arguments) {
  Arguments a{arguments};
  const MapSize in = a.size();
  const int64_t granularity = a.integer();
  const Window window{a.integer(), a.integer()};
  const UnitList list = a.list();
  RowMap map = RowMap::of(PatchGrid::of(in.strided(window.stride), granularity), in, window, 9,
                          list.units);
  map.index = list.index;
  map.count = list.count;
  auto* to = a.pointer<int32_t>();
  for (int32_t r = 0; r < map.listed() * map.area; r++) {
    const Row row = map.row(r);
    to[r * 3] = row.in, to[r * 3 + 1] = row.out, to[r * 3 + 2] = int32_t(row.taps);
  }
}

}  // extern "C"
