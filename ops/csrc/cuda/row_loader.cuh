// Brings a tile's rows and weights to shared memory, one stage of the pipeline at a time.
//
// The inner dimension is taps * depth with each tap's depth rounded up to whole chunks,
// so that a chunk of 16 bytes never lies in two taps. A thread brings the same chunk of
// several rows, and steps along the inner dimension from stage to stage.
#pragma once
#include "device.cuh"
#include "row_gemm.h"

namespace laud::cuda {

// A tile of kRows x kColumns outputs, shared by warps of kWarpRows x kWarpColumns, with a
// pipeline of kStages.
template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kBlocks_,
          int kStages_ = 4>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kThreads = 32 * (kRows / kWarpRows) * (kColumns / kWarpColumns);
  static constexpr int kBlocks = kBlocks_;  // wanted on a multiprocessor
  static constexpr int kStages = kStages_;
  static constexpr int kRowStep = kThreads / kRowChunks;  // rows between a thread's chunks
  static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
  static_assert(kRows % kRowStep == 0 && kColumns % kRowStep == 0, "threads must share evenly");
};

// What the threads of a block know about the rows and columns of their tile.
template <typename Tile>
struct TileTables {
  Row rows[Tile::kRows];
  bool rectified[Tile::kRows];  // where gemm.active says which rows are
  int32_t weight_rows[Tile::kColumns];  // -1: no such output
  float bias[Tile::kColumns];
};

// What differs from tile to tile.
struct TileRange {
  int32_t sample, first_row, last_row, group, first_column, last_column, depth;
};

// kPiece: how many bytes of weights lie together and aligned in memory. Less than a chunk
// where inputs are picked in small groups; rows are aligned then too, but their last chunk may
// be partly valid. 0: nothing is known of rows and weights, which are loaded one by one.
template <typename T, typename Tile, int kPiece>
class RowLoader {
  static constexpr int kSize = kChunkBytes / int(sizeof(T));  // elements of a chunk

 public:
  __device__ RowLoader(const RowGemm& gemm, const TileRange& range,
                       const TileTables<Tile>& tables)
      : gemm_(gemm), range_(range), chunk_(int32_t(threadIdx.x) % kRowChunks),
        first_(int32_t(threadIdx.x) / kRowChunks) {
    const int32_t chunks = int32_t(ceil_div(range.depth, kSize));
    tap_depth_ = (chunks > 0 ? chunks : 1) * kSize;
    steps_ = chunks == 0 ? 0 : int32_t(ceil_div(gemm.rows.taps * chunks, kRowChunks));
    const int32_t row_weights = gemm.rows.taps * gemm.depth;
#pragma unroll
    for (int i = 0; i < kOwnRows; i++) {
      const Row row = tables.rows[first_ + i * Tile::kRowStep];
      taps_[i] = row.taps;
      const int64_t in = row.in < 0 ? 0 : row.in;
      rows_[i] = static_cast<const T*>(gemm.in) + in * gemm.in_columns + range.group * gemm.depth;
    }
#pragma unroll
    for (int i = 0; i < kOwnColumns; i++) {
      const int32_t row = tables.weight_rows[first_ + i * Tile::kRowStep];
      weights_[i] = row < 0 ? nullptr
                            : static_cast<const T*>(gemm.weight) + int64_t{row} * row_weights;
    }
    step_to(chunk_ * kSize);
  }

  __device__ int32_t steps() const { return steps_; }

  // Start bringing the next stage to `stage`: first the tile's rows, then its weights.
  __device__ void load(char* stage) {
    const bool live = tap_ < gemm_.rows.taps && channel_ < range_.depth;
    const int64_t in_at = int64_t{gemm_.rows.tap_offset(tap_)} * gemm_.in_columns + channel_;
#pragma unroll
    for (int i = 0; i < kOwnRows; i++)
      bring_row(stage + chunk_place(first_ + i * Tile::kRowStep, chunk_), rows_[i] + in_at,
                live && (taps_[i] >> tap_ & 1));
    bring_weights(stage + Tile::kRows * kRowBytes, live);
    step_to(channel_ + kSize * kRowChunks);
  }

 private:
  static constexpr int kOwnRows = Tile::kRows / Tile::kRowStep;
  static constexpr int kOwnColumns = Tile::kColumns / Tile::kRowStep;

  __device__ void step_to(int32_t channel) {
    while (channel >= tap_depth_) {
      channel -= tap_depth_;
      tap_++;
    }
    channel_ = channel;
  }
  __device__ void bring_row(char* to, const T* from, bool valid) const {
    if constexpr (kPiece > 0) {
      const int32_t left = (range_.depth - channel_) * int32_t(sizeof(T));
      const int32_t bytes = kPiece == kChunkBytes || left > kChunkBytes ? kChunkBytes : left;
      copy_async<kChunkBytes>(to, valid ? from : gemm_.in, valid ? bytes : 0);
    } else {
      T chunk[kSize];
#pragma unroll
      for (int e = 0; e < kSize; e++)
        chunk[e] = valid && channel_ + e < range_.depth ? from[e] : from_float<T>(0.f);
      *reinterpret_cast<uint4*>(to) = pack(chunk);
    }
  }
  // The weight row's place of input k of the stage's tap, -1 where there is none.
  __device__ int32_t place_of(int32_t k, bool live) const {
    if (!live || k >= range_.depth) return -1;
    if (gemm_.channels.picks_inputs) k = gemm_.channels.channel(range_.sample, k);
    return k < 0 ? -1 : tap_ * gemm_.depth + k;
  }
  __device__ void bring_weights(char* stage, bool live) const {
    constexpr int kRun = kPiece > 0 ? kPiece / int(sizeof(T)) : 1;  // elements of a piece
    int32_t places[kSize / kRun];
#pragma unroll
    for (int p = 0; p < kSize / kRun; p++) places[p] = place_of(channel_ + p * kRun, live);
#pragma unroll
    for (int i = 0; i < kOwnColumns; i++) {
      const T* row = weights_[i];
      char* to = stage + chunk_place(first_ + i * Tile::kRowStep, chunk_);
      if constexpr (kPiece > 0) {
#pragma unroll
        for (int p = 0; p < kSize / kRun; p++) {
          const bool valid = row != nullptr && places[p] >= 0;
          copy_async<kPiece>(to + p * kPiece, valid ? row + places[p] : gemm_.weight,
                             valid ? kPiece : 0);
        }
      } else {
        T chunk[kSize];
#pragma unroll
        for (int e = 0; e < kSize; e++)
          chunk[e] = row != nullptr && places[e] >= 0 ? row[places[e]] : from_float<T>(0.f);
        *reinterpret_cast<uint4*>(to) = pack(chunk);
      }
    }
  }
  __device__ static uint4 pack(const T (&chunk)[kSize]) {
    uint4 bits;
    memcpy(&bits, chunk, sizeof(bits));
    return bits;
  }

  const RowGemm& gemm_;
  const TileRange& range_;
  int32_t chunk_, first_, steps_, tap_depth_, tap_ = 0, channel_ = 0;
  uint32_t taps_[kOwnRows];
  const T* rows_[kOwnRows];
  const T* weights_[kOwnColumns];
};

}  // namespace laud::cuda
