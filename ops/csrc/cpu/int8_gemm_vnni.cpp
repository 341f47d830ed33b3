// Int8Gemm by the dot products of AVX512-VNNI: four inputs for each lane and cycle.
#include "int8_gemm.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // wrong, of the intrinsics (GCC 12)
#endif
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,prefer-vector-width=512")
#endif
#include "int8_avx512.h"

namespace laud {
namespace avx512_vnni {
void run(const Int8Gemm& g);
void sum_rows(const uint8_t* rows, int64_t count, int64_t channels, int32_t* sums);
void quantize(const float* x, float inverse, int64_t size, uint8_t* to);
void dequantize(const uint8_t* x, float scale, int64_t size, float* to);

namespace {

constexpr int kRows = 6;

inline __m512i quads_of(const uint8_t* in, int64_t size) {
  int32_t quad = 0;
  __builtin_memcpy(&quad, in, size);
  return _mm512_set1_epi32(quad);
}

template <int R, int V>
void tile(const Int8Gemm& g, int64_t row, const Int8Panel& panel, const Finish& finish) {
  const Int8Layout& l = g.layout;
  __m512i acc[R][4];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < 4; v++) acc[r][v] = _mm512_loadu_si512(panel.bias + 16 * v);
  const int8_t* weight = panel.weight;
  for (int64_t t = 0; t < l.taps; t++) {
    const uint8_t* in[R];
    for (int r = 0; r < R; r++) in[r] = g.in[(row + r) * l.taps + t];
    for (int64_t k = 0; k < l.inputs; k += 4) {
      const int64_t size = l.inputs - k;
      __m512i b[V];
      for (int v = 0; v < V; v++) b[v] = _mm512_loadu_si512(weight + 64 * v);
      for (int r = 0; r < R; r++) {
        // Of an incomplete quad nothing beyond the row is read; its weights are 0.
        const __m512i a = size >= 4 ? quads_of(in[r] + k, 4) : quads_of(in[r] + k, size);
        for (int v = 0; v < V; v++) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, b[v]);
      }
      weight += 4 * Int8Layout::kPanel;
    }
  }
  for (int r = 0; r < R; r++)
    finish.row(row + r, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

template <int V>
void rows_of_panel(const Int8Gemm& g, int64_t index) {
  const auto panel = Int8Panel::of(g, index);
  const Finish finish(g, index, panel.multiplier);
  int64_t row = 0;
  for (; row + kRows <= g.rows; row += kRows) tile<kRows, V>(g, row, panel, finish);
  switch (g.rows - row) {
    case 1: return tile<1, V>(g, row, panel, finish);
    case 2: return tile<2, V>(g, row, panel, finish);
    case 3: return tile<3, V>(g, row, panel, finish);
    case 4: return tile<4, V>(g, row, panel, finish);
    case 5: return tile<5, V>(g, row, panel, finish);
  }
}

}  // namespace

void run(const Int8Gemm& g) {
  for (int64_t panel = g.first_panel; panel < g.last_panel; panel++) {
    switch ((g.columns_of(panel) + 15) / 16) {
      case 1: rows_of_panel<1>(g, panel); break;
      case 2: rows_of_panel<2>(g, panel); break;
      case 3: rows_of_panel<3>(g, panel); break;
      case 4: rows_of_panel<4>(g, panel); break;
    }
  }
}

void sum_rows(const uint8_t* rows, int64_t count, int64_t channels, int32_t* sums) {
  for (int64_t c = 0; c < channels; c += 64) {
    const int64_t left = channels - c;
    const __mmask64 mask = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
    __m512i even = _mm512_setzero_si512(), odd = even;  // 256 bytes add up to 16 bits
    const __m512i bytes = _mm512_set1_epi16(255);
    for (int64_t r = 0; r < count; r++) {
      const __m512i row = _mm512_maskz_loadu_epi8(mask, rows + r * channels + c);
      even = _mm512_add_epi16(even, _mm512_and_si512(row, bytes));
      odd = _mm512_add_epi16(odd, _mm512_srli_epi16(row, 8));
    }
    uint16_t both[2][32];
    _mm512_storeu_si512(both[0], even);
    _mm512_storeu_si512(both[1], odd);
    for (int64_t i = 0; i < left && i < 64; i++) sums[c + i] += both[i % 2][i / 2];
  }
}

void quantize(const float* x, float inverse, int64_t size, uint8_t* to) {
  const __m512 scale = _mm512_set1_ps(inverse);
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = size - i >= 16 ? 0xffff : (1u << (size - i)) - 1;
    const __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
    // The second operand is taken where one is NaN.
    const __m512 cut = _mm512_min_ps(_mm512_max_ps(y, _mm512_setzero_ps()), _mm512_set1_ps(255));
    _mm512_mask_cvtepi32_storeu_epi8(to + i, mask, _mm512_cvtps_epi32(cut));
  }
}

void dequantize(const uint8_t* x, float scale, int64_t size, float* to) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = size - i >= 16 ? 0xffff : (1u << (size - i)) - 1;
    const __m512i values = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, x + i));
    _mm512_mask_storeu_ps(to + i, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(values), factor));
  }
}

extern const Int8Kernels kernels;
const Int8Kernels kernels = {"avx512_vnni", kRows, run, sum_rows, quantize, dequantize};

}  // namespace avx512_vnni
}  // namespace laud

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
