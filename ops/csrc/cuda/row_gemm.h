// The product of rows behind every convolution here, as its launcher takes it.
//
//   out[r][n] = act(bias[n] + add[r][n] + sum over t, k of in[r][t][k] * weight[n][t][k])
//
// Maps and lists are matrices with a row per position; RowMap says which rows belong
// together. Weights are (outputs, taps, inputs / groups). `in` and `add` may lie in `out`
// where a tile reads only what it writes itself.
#pragma once
#include "../common/gemm_tiles.h"
#include "../common/row_map.h"
#include "launch.h"

namespace laud::cuda {

// Rows and positions are counted in 32 bits, with room for the last tiles.
constexpr int64_t kMostRows = INT32_MAX - (1 << 20);

// Channels of each sample: the first count[n] groups of index[n]; null: all channels.
struct ChannelList {
  const int32_t* index = nullptr;
  const int32_t* count = nullptr;
  int32_t groups = 0;
  Divider by_size;  // channels of a group
  bool picks_inputs = false, picks_outputs = false;

  static ChannelList of(const int32_t* index, const int32_t* count, int64_t groups,
                        int64_t group_size) {
    return {index, count, int32_t(groups), Divider::by(group_size), false, false};
  }

  LAUD_HOST_DEVICE int32_t channels(int32_t sample) const {
    const int32_t n = count[sample];
    return (n < 0 ? 0 : n < groups ? n : groups) * int32_t(by_size.divisor);
  }
  // The k-th of a sample's channels, -1 where its group does not exist.
  LAUD_HOST_DEVICE int32_t channel(int32_t sample, int32_t k) const {
    const int32_t place = by_size.quotient(k), size = int32_t(by_size.divisor);
    const int32_t group = index[int64_t{sample} * groups + place];
    return group < 0 || group >= groups ? -1 : group * size + k - place * size;
  }
};

struct RowGemm {
  Type type = Type::kFloat;
  RowMap rows;
  TileGrid tiles;  // set by the launcher
  const void *in = nullptr, *weight = nullptr, *bias = nullptr, *add = nullptr;
  void* out = nullptr;
  int32_t in_columns = 0, out_columns = 0;  // channels of a row of `in`, and of `add` and `out`
  int32_t groups = 1;
  int32_t depth = 0, columns = 0;  // inputs and outputs of one group
  bool relu = false;
  // Of all units: those that are false are rectified, the others get more added; null: none.
  const bool* active = nullptr;
  bool tf32 = false;  // float32: one TF32 product instead of three that keep its precision
  ChannelList channels;
  // A second result, of one tap and all positions: sum over k of in[r][k] * logit_weight[k].
  const float* logit_weight = nullptr;
  float* logits = nullptr;
  // What each unit adds up to as it is stored, (units, pieces, columns): see `pieces_of`; null:
  // none. For one group and all channels.
  float* pieces = nullptr;
  bool prefetch_add = false, vector_out = false;  // set by the launcher
};

// T is float, __half or __nv_bfloat16; each is compiled in a file of its own.
template <typename T>
cudaError_t launch_row_gemm_as(RowGemm gemm, const Launch& on);

cudaError_t launch_row_gemm(const RowGemm& gemm, const Launch& on);

}  // namespace laud::cuda
