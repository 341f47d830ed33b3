// Row GEMM: the one CPU kernel under every convolution here.
//
//   out[r][n] = act(bias[n] + add[r][n] + sum over t, k of in[r][t][k] * weight[t][k][n])
//
// Rows are given by address, so a gather costs nothing: `in[r * taps + t]` points
// at `depth` contiguous values (a position of a channels-last map; a row of zeros
// beyond its border). A 1x1 convolution has one tap, a 3x3 one nine.
//
// Weights are packed in panels of `panel` columns, the last one narrower but a
// multiple of the vector length: panel p holds [taps * depth][columns of p],
// zero-padded. A tile of a few rows x 1 panel stays in registers.
#pragma once
#include <cstdint>

namespace laud {

// Half precision as it lies in memory. Sums are taken in float, products in pairs of inputs,
// by the hardware's dot products: panels hold [taps * pairs][columns of p][2].
struct Bfloat16 {
  uint16_t bits;
};

template <typename T>
struct RowTypes {
  using Sum = T;
  static constexpr int64_t step = 1;  // inputs that are multiplied at once
};
template <>
struct RowTypes<Bfloat16> {
  using Sum = float;
  static constexpr int64_t step = 2;
};

template <typename T>
struct RowGemm {
  int64_t rows = 0;
  int64_t taps = 1;
  int64_t depth = 0;
  const T* const* in = nullptr;     // rows * taps addresses
  int64_t in_offset = 0;            // added to each: the first input channel
  const T* packed = nullptr;        // from pack(), of this matrix's first panel
  // Null, or which of a tap's packed rows is multiplied by each unit of `in`: by each value, or
  // each pair where pairs are multiplied.
  const int32_t* picked = nullptr;
  int64_t packed_depth = 0;         // values of a packed panel's column: those of all taps
  const typename RowTypes<T>::Sum* bias = nullptr;  // padded like the weights
  int64_t columns = 0;              // N
  const T* const* add = nullptr;    // null, or one address per row
  T* const* out = nullptr;          // one address per row
  int64_t out_offset = 0;           // added to each out and add: the first output channel
  bool relu = false;
};

// A piece of a patch, and the map around it, of a depthwise convolution of k x k taps.
template <typename T>
struct DepthwisePiece {
  const T* map = nullptr;                       // of the sample: height * width rows of `channels`
  int64_t height = 0, width = 0, channels = 0;
  int64_t y = 0, x = 0, lines = 0, columns = 0;  // what is written, inside the map
  int64_t kernel = 0;
  const T* taps = nullptr;    // by vectors of channels, zero-padded: [k * k][vector]
  const T* bias = nullptr;    // padded to whole vectors
  T* window = nullptr;        // room for (lines + k - 1) * (columns + k - 1) vectors
  T* out = nullptr;
  int64_t line_pitch = 0;     // values from a line that is written to the next
};

// What one instruction set offers.
template <typename T>
struct RowGemmKernels {
  int64_t vector;                              // elements
  int64_t panel;                               // columns of a full panel
  int64_t rows;                                // of a full tile
  void (*run)(const RowGemm<T>&);
  // Copies runs of `size` elements, `from[i] * size` on, side by side.
  void (*pick)(const T* row, const int32_t* from, int64_t count, int64_t size, T* to);
  using Sum = typename RowTypes<T>::Sum;
  // Weighted sum of a row: sum of row[i] * weight[i].
  Sum (*dot)(const T* row, const Sum* weight, int64_t size);
  // sum[i] += row[i].
  void (*accumulate)(const T* row, int64_t size, Sum* sum);
  // row[i] *= scales[i].
  void (*scale)(T* row, const Sum* scales, int64_t size);
  // to[i] = max(to[i], row[i]), NaN where one is.
  void (*maximum)(const T* row, int64_t size, T* to);
  // Transforms of a row (0 to 3) of one tile, see winograd_impl.h.
  void (*winograd_in)(int row, const T* const* d, int64_t depth, T* to, int64_t stride);
  void (*winograd_out)(int row, const T* from, int64_t stride, int64_t columns, T* const* out);
  // Of half types only: to their sums' type and back.
  void (*widen)(const T* from, int64_t size, Sum* to);
  void (*narrow)(const Sum* from, int64_t size, T* to);
  // Not of half types: see mlp_impl.h.
  void (*gelu)(T* row, int64_t size);
  void (*normalize)(T* row, int64_t size, T eps);
  void (*depthwise)(const DepthwisePiece<T>& piece);
};

template <typename T>
const RowGemmKernels<T>& row_gemm();

const char* row_gemm_isa();

// Whether there are dot products of Bfloat16; else there are no kernels of it.
bool has_bfloat16();

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace laud
