// Implicit GEMM on tensor cores over rows that a RowMap finds (see row_gemm.h).
//
//   shared memory   stage 0 | stage 1 | stage 2 (| stage 3) | results
//   a stage         kRows x 64 bytes of the rows, kColumns x 64 bytes of the weights
//   results         kRows x kColumns of T, rows 16 bytes apart; they lie over the stages
//                   unless what is added is prefetched into them
//
// Blocks go over the tiles until the listed rows are done; the count is read on the device.
// cp.async fills all stages but one ahead of mma.sync, with one barrier in each step. Results
// pass through shared memory so that they are read and written 16 bytes at a time.
// float32 is split into two TF32 parts, three products of which keep its precision; their
// sums are added outside the tensor cores, which do not round to nearest.
#pragma once
#include "row_loader.cuh"

namespace laud::cuda {

template <typename T, typename Tile>
struct SharedLayout {
  static constexpr int kPitch = Tile::kColumns * int(sizeof(T)) + kChunkBytes;
  static constexpr int kResultBytes = Tile::kRows * kPitch;
  static constexpr int kPipelineBytes = Tile::kStages * Tile::kStageBytes;

  static constexpr int bytes(bool apart) {
    return apart ? kPipelineBytes + kResultBytes
                 : kPipelineBytes > kResultBytes ? kPipelineBytes : kResultBytes;
  }
};

// One thread's part of the products: its warp's kWarpRows x kWarpColumns.
template <typename T, typename Tile>
class TileSum {
  static constexpr int kDown = Tile::kWarpRows / 16, kAcross = Tile::kWarpColumns / 8;
  static_assert(kAcross % 2 == 0, "weights are loaded two columns of products at a time");

 public:
  __device__ TileSum() {
    const int32_t warp = threadIdx.x / 32, across = Tile::kColumns / Tile::kWarpColumns;
    row_ = warp / across * Tile::kWarpRows;
    column_ = warp % across * Tile::kWarpColumns;
    lane_ = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kDown; i++)
#pragma unroll
      for (int j = 0; j < kAcross; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums_[i][j][e] = 0.f;
  }

  // Add the products of one stage.
  __device__ void add_stage(const char* stage, bool tf32) {
    const char* weights = stage + Tile::kRows * kRowBytes;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t a[kDown][4], b[kAcross][2];
#pragma unroll
      for (int i = 0; i < kDown; i++)
        load_matrices(a[i], stage + chunk_place(row_ + i * 16 + lane_ % 16, half * 2 + lane_ / 16));
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t pair[4];
        load_matrices(pair, weights + chunk_place(column_ + j * 8 + lane_ / 16 * 8 + lane_ % 8,
                                                  half * 2 + lane_ / 8 % 2));
        b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
      }
      if constexpr (sizeof(T) == 4) {
        if (tf32) add_rounded(a, b);
        else add_split(a, b);
      } else {
#pragma unroll
        for (int i = 0; i < kDown; i++)
#pragma unroll
          for (int j = 0; j < kAcross; j++) multiply_add(sums_[i][j], a[i], b[j], T());
      }
    }
  }

  // Calls visit(row, column, values of that column and the next, ...) for all of them.
  template <typename Visit>
  __device__ void each_pair(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < kDown; i++)
#pragma unroll
      for (int j = 0; j < kAcross; j++) {
        const int32_t row = row_ + i * 16 + lane_ / 4, column = column_ + j * 8 + lane_ % 4 * 2;
        visit(row, column, sums_[i][j][0], sums_[i][j][1]);
        visit(row + 8, column, sums_[i][j][2], sums_[i][j][3]);
      }
  }

 private:
  __device__ void add_rounded(uint32_t (&a)[kDown][4], uint32_t (&b)[kAcross][2]) {
#pragma unroll
    for (int j = 0; j < kAcross; j++)
      for (int e = 0; e < 2; e++) b[j][e] = round_tf32(__uint_as_float(b[j][e]));
#pragma unroll
    for (int i = 0; i < kDown; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) a[i][e] = round_tf32(__uint_as_float(a[i][e]));
#pragma unroll
      for (int j = 0; j < kAcross; j++) multiply_add(sums_[i][j], a[i], b[j], 0.f);
    }
  }
  // The rest that TF32 leaves of a float32, itself in TF32; `bits` becomes its TF32.
  __device__ static uint32_t split(uint32_t& bits) {
    const float value = __uint_as_float(bits);
    const uint32_t rounded = round_tf32(value) & 0xffffe000u;  // bits below are unspecified
    // The largest values would round to infinity.
    bits = (rounded & 0x7fffffffu) == 0x7f800000u ? bits & 0xffffe000u : rounded;
    return round_tf32(value - __uint_as_float(bits));
  }
  __device__ void add_split(uint32_t (&a)[kDown][4], uint32_t (&b)[kAcross][2]) {
    uint32_t rest_b[kAcross][2];
#pragma unroll
    for (int j = 0; j < kAcross; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) rest_b[j][e] = split(b[j][e]);
#pragma unroll
    for (int i = 0; i < kDown; i++) {
      uint32_t rest_a[4];
#pragma unroll
      for (int e = 0; e < 4; e++) rest_a[e] = split(a[i][e]);
#pragma unroll
      for (int j = 0; j < kAcross; j++) {
        float part[4] = {0.f, 0.f, 0.f, 0.f}, rest[4] = {0.f, 0.f, 0.f, 0.f};
        multiply_add(rest, rest_a, b[j], 0.f);
        multiply_add(rest, a[i], rest_b[j], 0.f);
        multiply_add(part, a[i], b[j], 0.f);
        // What infinity leaves is NaN: there the first parts' products are all of it.
#pragma unroll
        for (int e = 0; e < 4; e++)
          sums_[i][j][e] += fabsf(part[e]) <= 3.4028235e38f ? part[e] + rest[e] : part[e];
      }
    }
  }

  int32_t row_, column_, lane_;
  float sums_[kDown][kAcross][4];
};

// The masker's logit of each row, from the stages that the products pass through.
template <typename T, typename Tile>
class LogitSum {
  static constexpr int kSize = kChunkBytes / int(sizeof(T));
  static constexpr int kShare = Tile::kThreads / Tile::kRows;  // threads of a row
  static constexpr int kOwn = kRowChunks / kShare;             // chunks of a thread
  static_assert(kShare >= 1 && kRowChunks % kShare == 0 && Tile::kThreads % Tile::kRows == 0,
                "threads must share the rows evenly");

 public:
  __device__ void add_stage(const char* stage, int32_t step, const RowGemm& gemm) {
    const int32_t row = threadIdx.x / kShare;
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int32_t chunk = threadIdx.x % kShare * kOwn + i;
      const int32_t k = (step * kRowChunks + chunk) * kSize;
      const uint4 bits = *reinterpret_cast<const uint4*>(stage + chunk_place(row, chunk));
      T values[kSize];
      memcpy(values, &bits, sizeof(bits));
#pragma unroll
      for (int e = 0; e < kSize; e++)
        if (k + e < gemm.depth) sum_ += to_float(values[e]) * __ldg(gemm.logit_weight + k + e);
    }
  }
  __device__ void write(const TileTables<Tile>& tables, const RowGemm& gemm) {
#pragma unroll
    for (int other = 1; other < kShare; other *= 2)
      sum_ += __shfl_xor_sync(0xffffffffu, sum_, other);
    const int32_t to = tables.rows[threadIdx.x / kShare].out;
    if (threadIdx.x % kShare == 0 && to >= 0) gemm.logits[to] = sum_;
  }

 private:
  float sum_ = 0.f;
};

// Moves results between global memory and their place in shared memory.
template <typename T, typename Tile>
class ResultMover {
  static constexpr int kSize = kChunkBytes / int(sizeof(T));
  static constexpr int kChunks = Tile::kColumns / kSize;
  using Shared = SharedLayout<T, Tile>;

 public:
  __device__ ResultMover(const RowGemm& gemm, const TileRange& range,
                         const TileTables<Tile>& tables, char* results)
      : gemm_(gemm), range_(range), tables_(tables), results_(results) {}

  __device__ T* at(int32_t row, int32_t column) const {
    return reinterpret_cast<T*>(results_ + row * Shared::kPitch) + column;
  }
  // Start bringing what is added; the caller waits for it.
  __device__ void bring() const {
    each_chunk([&](int32_t row, int32_t column, int32_t columns, int64_t place) {
      const T* from = static_cast<const T*>(gemm_.add) + place;
      if (gemm_.vector_out && columns == kSize) {
        copy_async<kChunkBytes>(at(row, column), from, kChunkBytes);
      } else {
        for (int32_t e = 0; e < columns; e++) at(row, column)[e] = from[e];
      }
    });
  }
  __device__ void write() const {
    each_chunk([&](int32_t row, int32_t column, int32_t columns, int64_t place) {
      T* to = static_cast<T*>(gemm_.out) + place;
      if (gemm_.vector_out && columns == kSize) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(at(row, column));
      } else {
        for (int32_t e = 0; e < columns; e++) to[e] = at(row, column)[e];
      }
    });
  }

 private:
  // Calls move(row, column, how many columns, place in `out`) for this thread's chunks.
  template <typename Move>
  __device__ void each_chunk(const Move& move) const {
    const int32_t columns = range_.last_column - range_.first_column;
    const int64_t first = int64_t{range_.group} * gemm_.columns + range_.first_column;
#pragma unroll 4
    for (int32_t i = threadIdx.x; i < Tile::kRows * kChunks; i += Tile::kThreads) {
      const int32_t row = i / kChunks, column = i % kChunks * kSize;
      const int32_t to = tables_.rows[row].out;
      if (to < 0 || column >= columns) continue;
      move(row, column, columns - column < kSize ? columns - column : kSize,
           int64_t{to} * gemm_.out_columns + first + column);
    }
  }

  const RowGemm& gemm_;
  const TileRange& range_;
  const TileTables<Tile>& tables_;
  char* results_;
};

// Adds up the results of each band of rows, unit by unit: a thread two columns of a band.
template <typename T, typename Tile>
__device__ void add_bands(const RowGemm& gemm, const TileRange& range,
                          const TileTables<Tile>& tables, const ResultMover<T, Tile>& mover) {
  constexpr int kPairs = Tile::kColumns / 2;
  static_assert(Tile::kRows % kBandRows == 0, "a band lies in one tile");
  const int32_t area = gemm.rows.area;
  for (int32_t i = threadIdx.x; i < Tile::kRows / kBandRows * kPairs; i += Tile::kThreads) {
    const int32_t row = i / kPairs * kBandRows, column = i % kPairs * 2;
    const int32_t first = range.first_row + row, left = range.last_column - range.first_column;
    if (first >= range.last_row || column >= left) continue;
    const int32_t rows = int32_t(min_of(range.last_row - first, kBandRows));
    int32_t unit = gemm.rows.by_area.quotient(first);
    int32_t of_unit = (unit + 1) * area - first;  // rows that are left of it
    const auto write = [&](float one, float two) {
      const int64_t piece = unit * pieces_of(area) + first / kBandRows - gemm.rows.first_band(unit);
      float* to = gemm.pieces + piece * gemm.out_columns + range.first_column + column;
      to[0] = one;
      if (column + 1 < left) to[1] = two;
    };
    float one = 0.f, two = 0.f;
    for (int32_t r = 0; r < rows; r++) {
      if (of_unit == 0) {
        write(one, two);
        one = two = 0.f;
        unit++;
        of_unit = area;
      }
      const T* from = mover.at(row + r, column);
      if (tables.rows[row + r].out >= 0) one += to_float(from[0]), two += to_float(from[1]);
      of_unit--;
    }
    write(one, two);
  }
}

// The rows, columns and depth of a tile; false where it has no outputs.
template <typename Tile>
__device__ bool find_range(const RowGemm& gemm, int32_t tile, TileRange& range) {
  const TileId id = gemm.tiles.at(tile);
  const ChannelList& channels = gemm.channels;
  range.sample = id.sample;
  range.group = id.group;
  range.depth = gemm.depth;
  int32_t first = 0, last = gemm.rows.listed(), columns = gemm.columns;
  if (channels.index) {
    if (channels.picks_inputs) range.depth = channels.channels(id.sample);
    if (channels.picks_outputs) columns = channels.channels(id.sample);
    first = gemm.rows.first_unit(id.sample);
    last = gemm.rows.first_unit(id.sample + 1);
  }
  range.first_row = first * gemm.rows.area + id.row_tile * Tile::kRows;
  range.last_row = int32_t(min_of(last * gemm.rows.area, range.first_row + Tile::kRows));
  range.first_column = id.column_tile * Tile::kColumns;
  range.last_column = int32_t(min_of(columns, range.first_column + Tile::kColumns));
  return range.first_row < range.last_row && range.first_column < range.last_column;
}

template <typename T, typename Tile>
__device__ void fill_tables(const RowGemm& gemm, const TileRange& range,
                            TileTables<Tile>& tables) {
  for (int32_t i = threadIdx.x; i < Tile::kRows; i += Tile::kThreads) {
    const int32_t row = range.first_row + i;
    const bool exists = row < range.last_row;
    tables.rows[i] = exists ? gemm.rows.row(row) : Row{-1, -1, 0};
    if (gemm.active)
      tables.rectified[i] = exists && !gemm.active[gemm.rows.by_area.quotient(row)];
  }
  for (int32_t i = threadIdx.x; i < Tile::kColumns; i += Tile::kThreads) {
    int32_t column = range.first_column + i;
    const bool exists = column < range.last_column;
    if (exists && gemm.channels.picks_outputs)
      column = gemm.channels.channel(range.sample, column);
    const int32_t row = exists && column >= 0 ? range.group * gemm.columns + column : -1;
    tables.weight_rows[i] = row;
    tables.bias[i] = row < 0 ? 0.f : to_float(static_cast<const T*>(gemm.bias)[row]);
  }
}

template <typename T, typename Tile, int kPiece>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    row_gemm_kernel(const __grid_constant__ RowGemm gemm) {
  using Shared = SharedLayout<T, Tile>;
  constexpr int kStages = Tile::kStages;
  __shared__ TileTables<Tile> tables;
  char* const stages = dynamic_shared();
  char* const results = stages + (gemm.prefetch_add ? Shared::kPipelineBytes : 0);
  // Without channels the count bounds the tiles, with channels every sample's own rows do.
  const int32_t all_tiles = int32_t(gemm.tiles.tiles());
  const int32_t listed_tiles =
      int32_t(ceil_div(gemm.rows.listed() * gemm.rows.area, Tile::kRows)) * gemm.tiles.row_size();
  const int32_t tiles = gemm.channels.index ? all_tiles : int32_t(min_of(all_tiles, listed_tiles));
  for (int32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    TileRange range;
    if (!find_range<Tile>(gemm, tile, range)) continue;  // the same for all threads
    __syncthreads();  // the last tile's tables and results are in use until here
    fill_tables<T, Tile>(gemm, range, tables);
    __syncthreads();

    RowLoader<T, Tile, kPiece> loader(gemm, range, tables);
    const ResultMover<T, Tile> mover(gemm, range, tables, results);
    const int32_t steps = loader.steps();
    const bool adds_logits = gemm.logits && range.first_column == 0;
    TileSum<T, Tile> sum;
    LogitSum<T, Tile> logit;
#pragma unroll
    for (int32_t stage = 0; stage < kStages - 1; stage++) {
      if (stage < steps) loader.load(stages + stage * Tile::kStageBytes);
      if (stage == kStages - 2 && gemm.prefetch_add) mover.bring();
      copy_commit();
    }
    for (int32_t step = 0; step < steps; step++) {
      copy_wait<kStages - 2>();
      __syncthreads();  // stage `step` is there, and nobody reads the one before it any more
      const int32_t next = step + kStages - 1;
      if (next < steps) loader.load(stages + next % kStages * Tile::kStageBytes);
      copy_commit();
      const char* stage = stages + step % kStages * Tile::kStageBytes;
      sum.add_stage(stage, gemm.tf32);
      if (adds_logits) logit.add_stage(stage, step, gemm);
    }
    if (adds_logits) logit.write(tables, gemm);
    copy_wait<0>();
    __syncthreads();  // the stages are free, and a prefetched addend is there
    if (gemm.add && !gemm.prefetch_add) {
      mover.bring();
      copy_commit();
      copy_wait<0>();
      __syncthreads();
    }
    sum.each_pair([&](int32_t row, int32_t column, float first, float second) {
      T* to = mover.at(row, column);
      first += tables.bias[column], second += tables.bias[column + 1];
      if (gemm.add) first += to_float(to[0]), second += to_float(to[1]);
      // Not fmaxf, which drops NaN.
      if (gemm.relu || (gemm.active && tables.rectified[row]))
        first = first < 0.f ? 0.f : first, second = second < 0.f ? 0.f : second;
      to[0] = from_float<T>(first), to[1] = from_float<T>(second);
    });
    __syncthreads();
    mover.write();
    if (gemm.pieces) add_bands(gemm, range, tables, mover);
  }
}

template <typename T, typename Tile, int kPiece>
cudaError_t launch_tile(RowGemm gemm, const Launch& on) {
  using Shared = SharedLayout<T, Tile>;
  const bool by_sample = gemm.channels.index != nullptr;
  if (gemm.pieces && (by_sample || gemm.groups != 1)) return cudaErrorInvalidValue;
  const RowMap& rows = gemm.rows;
  const int64_t most_units =
      by_sample ? min_of(rows.units, rows.by_sample.divisor) : int64_t{rows.units};
  gemm.tiles = TileGrid::of(by_sample ? rows.samples : 1, most_units * rows.area, gemm.groups,
                            gemm.columns, Tile::kRows, Tile::kColumns);
  if (gemm.tiles.tiles() == 0) return cudaSuccess;
  if (gemm.tiles.tiles() > kMostRows) return cudaErrorInvalidConfiguration;
  constexpr int kTables = int(sizeof(TileTables<Tile>));
  gemm.prefetch_add = gemm.add && Shared::bytes(true) + kTables <= on.shared_bytes;
  return launch(row_gemm_kernel<T, Tile, kPiece>, on,
                dim3(blocks_for(on, gemm.tiles.tiles(), Tile::kBlocks)), dim3(Tile::kThreads),
                size_t(Shared::bytes(gemm.prefetch_add)), gemm);
}

// Whether rows of so many bytes are whole chunks, each aligned.
inline bool aligned(const void* at, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(at) % kChunkBytes == 0 && row_bytes % kChunkBytes == 0;
}

// The most bytes of a weight row that lie together and aligned, see RowLoader.
template <typename T>
int weight_piece(const RowGemm& gemm) {
  constexpr int kBytes = int(sizeof(T));
  if (!aligned(gemm.in, int64_t{gemm.in_columns} * kBytes)) return 0;
  if (!gemm.channels.picks_inputs)
    return aligned(gemm.in, int64_t{gemm.depth} * kBytes) &&
           aligned(gemm.weight, int64_t{gemm.depth} * kBytes) ? kChunkBytes : 0;
  const int64_t run = int64_t{gemm.channels.by_size.divisor} * kBytes;
  if (!aligned(gemm.weight, 0)) return 0;
  return run % 16 == 0 ? 16 : run % 8 == 0 ? 8 : run % 4 == 0 ? 4 : 0;
}

template <typename T>
cudaError_t launch_row_gemm_as(RowGemm gemm, const Launch& on) {
  constexpr bool kHalves = sizeof(T) == 2;
  constexpr int kBytes = int(sizeof(T)), kMore = kHalves ? 1 : 0;  // registers for more blocks
  gemm.vector_out = aligned(gemm.out, int64_t{gemm.out_columns} * kBytes) &&
                    aligned(gemm.add, int64_t{gemm.columns} * kBytes);
  switch (weight_piece<T>(gemm)) {
    case 16: break;
    case 8: return launch_tile<T, Tile<64, 64, 32, 32, 3>, 8>(gemm, on);
    case 4: return launch_tile<T, Tile<64, 64, 32, 32, 3>, 4>(gemm, on);
    default: return launch_tile<T, Tile<64, 64, 32, 32, 2>, 0>(gemm, on);
  }
  // Without a list there are twice as many rows as of one that is half full.
  const int64_t rows = int64_t{gemm.rows.units} * gemm.rows.area * (gemm.rows.index ? 1 : 2);
  const TileSize tile =
      tile_for(rows, gemm.columns, gemm.groups, on.multiprocessors, kHalves);
  if (tile.columns == 32) return launch_tile<T, Tile<128, 32, 32, 32, 2>, 16>(gemm, on);
  if constexpr (kHalves) {
    if (tile.columns == 256) return launch_tile<T, Tile<128, 256, 64, 64, 1, 3>, 16>(gemm, on);
    if (tile.columns == 128) return launch_tile<T, Tile<128, 128, 64, 64, 2>, 16>(gemm, on);
  } else if (tile.columns == 128) {  // sums and rests of 64 x 64 would not fit the registers
    return launch_tile<T, Tile<128, 128, 64, 32, 1>, 16>(gemm, on);
  }
  if (tile.rows == 128) return launch_tile<T, Tile<128, 64, 64, 32, 2 + kMore>, 16>(gemm, on);
  return launch_tile<T, Tile<64, 64, 32, 32, 3 + kMore>, 16>(gemm, on);
}

}  // namespace laud::cuda
