// Row GEMM of 8-bit integers, under every convolution of a quantised network.
//
//   sum[r][n] = bias[n] + sum over t, k of in[r][t][k] * weight[t][k][n]     exact, in 32 bits
//   out[r][n] = clamp(round(sum[r][n] * multiplier[n]) + add[r][n])
//
// Activations are 0 to 255, weights -127 to 127. A multiplier takes a sum to the scale of
// the output; it is below 1, so that what is rounded fits 32 bits. It is rounded to even,
// cut to 16 bits, then added to. Every instruction set gives the same integers.
//
// Rows are given by address, as in row_gemm.h. Weights are packed in panels of 64 columns,
// zero-padded: bias [64] (int32), multiplier [64] (float), weights [taps * quads][64][4].
// Four inputs of a column lie together, as the dot products of VNNI and AMX read them.
#pragma once
#include <cstdint>

namespace laud {

struct Int8Layout {
  int64_t taps, inputs, outputs;

  static constexpr int64_t kPanel = 64, kHead = 2 * 4 * kPanel;
  int64_t quads() const { return (inputs + 3) / 4; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t panel_size() const { return kHead + taps * quads() * 4 * kPanel; }
  int64_t size() const { return panels() * panel_size(); }
};

struct Int8Gemm {
  Int8Layout layout = {};
  int64_t rows = 0;
  const uint8_t* const* in = nullptr;  // rows * taps addresses
  const int8_t* packed = nullptr;      // from pack_int8
  int64_t first_panel = 0, last_panel = 0;
  // Null, or one address per row. `wide_add` is in units of the output's scale too.
  const uint8_t* const* add = nullptr;
  const int16_t* const* wide_add = nullptr;
  uint8_t* const* out = nullptr;  // one address per row
  // Null, or where the result is written before it is cut to 0 to 255.
  int16_t* const* wide_out = nullptr;

  int64_t columns_of(int64_t panel) const {
    const int64_t left = layout.outputs - panel * Int8Layout::kPanel;
    return left < Int8Layout::kPanel ? left : Int8Layout::kPanel;
  }
};

// A panel as it lies in memory.
struct Int8Panel {
  const int32_t* bias;
  const float* multiplier;
  const int8_t* weight;

  static Int8Panel of(const Int8Gemm& g, int64_t panel) {
    const int8_t* at = g.packed + panel * g.layout.panel_size();
    return {reinterpret_cast<const int32_t*>(at),
            reinterpret_cast<const float*>(at) + Int8Layout::kPanel, at + Int8Layout::kHead};
  }
};

// What one instruction set offers.
struct Int8Kernels {
  const char* isa;
  int64_t row_tile;  // rows that are multiplied at once
  void (*run)(const Int8Gemm&);
  // sums[c] = the sum over all positions of lines that are `apart` bytes apart.
  void (*sum_window)(const uint8_t* first, int64_t lines, int64_t apart, int64_t positions,
                     int64_t channels, int32_t* sums);
  // to[i] = round(x[i] * inverse) + zero, cut to 0 to 255; 0 for NaN.
  void (*quantize)(const float* x, float inverse, int32_t zero, int64_t size, uint8_t* to);
  // to[i] = x[i] * scale
  void (*dequantize)(const uint8_t* x, float scale, int64_t size, float* to);
};

const Int8Kernels& int8_kernels();

}  // namespace laud
