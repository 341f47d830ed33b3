// Picks the widest instruction set that this CPU has for Int8Gemm: amx_int8, or avx512_vnni,
// or plain C++; LAUD_MM_ISA asks for a narrower one.
#include "int8_gemm.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "row_gemm.h"

namespace laud {
#if defined(__x86_64__)
namespace avx512_vnni {
extern const Int8Kernels kernels;
}
namespace amx_int8 {
extern const Int8Kernels kernels;
bool allowed();  // asks the system for the tiles
}
#endif

namespace {

int32_t cut(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

void run_row(const Int8Gemm& g, int64_t row, int64_t panel) {
  constexpr int64_t width = Int8Layout::kPanel;
  const auto p = Int8Panel::of(g, panel);
  int32_t sums[width];
  std::memcpy(sums, p.bias, sizeof(sums));
  for (int64_t t = 0; t < g.layout.taps; t++) {
    const uint8_t* in = g.in[row * g.layout.taps + t];
    for (int64_t k = 0; k < g.layout.inputs; k++) {
      const int8_t* weight = p.weight + (t * g.layout.quads() + k / 4) * 4 * width + k % 4;
      const int32_t value = in[k];
      for (int64_t n = 0; n < width; n++) sums[n] += value * weight[4 * n];
    }
  }
  for (int64_t n = 0, at = panel * width; n < g.columns_of(panel); n++, at++) {
    const float scaled = static_cast<float>(sums[n]) * p.multiplier[n];
    int32_t value = cut(static_cast<int32_t>(std::nearbyint(scaled)), INT16_MIN, INT16_MAX);
    if (g.add) value += g.add[row][at];
    if (g.wide_add) value += g.wide_add[row][at];
    value = cut(value, INT16_MIN, INT16_MAX);
    if (g.wide_out) g.wide_out[row][at] = static_cast<int16_t>(value);
    g.out[row][at] = static_cast<uint8_t>(cut(value, 0, UINT8_MAX));
  }
}

void run(const Int8Gemm& g) {
  for (int64_t panel = g.first_panel; panel < g.last_panel; panel++)
    for (int64_t row = 0; row < g.rows; row++) run_row(g, row, panel);
}

void sum_window(const uint8_t* first, int64_t lines, int64_t apart, int64_t positions,
                int64_t channels, int32_t* sums) {
  std::memset(sums, 0, channels * sizeof(int32_t));
  for (int64_t line = 0; line < lines; line++)
    for (int64_t i = 0; i < positions * channels; i++)
      sums[i % channels] += first[line * apart + i];
}

void quantize(const float* x, float inverse, int32_t zero, int64_t size, uint8_t* to) {
  const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  for (int64_t i = 0; i < size; i++) {
    const float value = x[i] * inverse;  // NaN compares as false
    const float within = value > low ? (value < high ? value : high) : low;
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(within)) + zero);
  }
}

void dequantize(const uint8_t* x, float scale, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<float>(x[i]) * scale;
}

const Int8Kernels plain = {"plain", 1, run, sum_window, quantize, dequantize};

const Int8Kernels& choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* wanted = std::getenv("LAUD_MM_ISA");
  const auto is = [&](const char* name) { return wanted && !std::strcmp(wanted, name); };
  const bool narrow = is("baseline") || is("avx2") || is("avx512");
  if (!narrow && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return !is("avx512_bf16") && amx_int8::allowed() ? amx_int8::kernels : avx512_vnni::kernels;
  }
#endif
  return plain;
}

}  // namespace

const Int8Kernels& int8_kernels() {
  static const Int8Kernels& chosen = choose();
  return chosen;
}

}  // namespace laud
