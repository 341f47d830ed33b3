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
void sum_window(const uint8_t* first, int64_t lines, int64_t apart, int64_t positions,
                int64_t channels, int32_t* sums);
void quantize(const float* x, float inverse, int32_t zero, int64_t size, uint8_t* to);
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

namespace {

// Sums of 64 channels, of even and odd ones apart; 256 bytes add up to 16 bits.
struct Sums {
  __m512i even, odd;

  void clear() { even = odd = _mm512_setzero_si512(); }
  void add(__m512i row) {
    even = _mm512_add_epi16(even, _mm512_and_si512(row, _mm512_set1_epi16(255)));
    odd = _mm512_add_epi16(odd, _mm512_srli_epi16(row, 8));
  }
  void flush(int32_t* to, int64_t channels) {
    // Channels in order, but for quarters: 8 of each of 4 runs of 16, and the other 8.
    const __m512i runs[2] = {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
    alignas(64) uint16_t halves[2][32];
    _mm512_store_si512(halves[0], runs[0]);
    _mm512_store_si512(halves[1], runs[1]);
    for (int64_t c = 0; c < channels && c < 64; c += 8) {
      const __mmask8 mask = channels - c >= 8 ? 0xff : (1u << (channels - c)) - 1;
      const __m256i own = _mm256_cvtepu16_epi32(_mm_load_si128(
          reinterpret_cast<const __m128i*>(&halves[c / 8 % 2][c / 16 * 8])));
      _mm256_mask_storeu_epi32(to + c, mask, _mm256_add_epi32(
          own, _mm256_maskz_loadu_epi32(mask, to + c)));
    }
    clear();
  }
};

}  // namespace

void sum_window(const uint8_t* first, int64_t lines, int64_t apart, int64_t positions,
                int64_t channels, int32_t* sums) {
  constexpr int kVectors = 4, kWidth = 64 * kVectors;
  for (int64_t c = 0; c < channels; c++) sums[c] = 0;
  for (int64_t start = 0; start < channels; start += kWidth) {
    __mmask64 masks[kVectors];
    Sums own[kVectors];
    for (int v = 0; v < kVectors; v++) {
      const int64_t left = channels - start - 64 * v;
      masks[v] = left >= 64 ? ~__mmask64(0) : left > 0 ? (__mmask64(1) << left) - 1 : 0;
      own[v].clear();
    }
    int64_t count = 0;
    for (int64_t line = 0; line < lines; line++) {
      for (int64_t i = 0; i < positions; i++) {
        const uint8_t* row = first + line * apart + i * channels + start;
        for (int v = 0; v < kVectors; v++)
          own[v].add(_mm512_maskz_loadu_epi8(masks[v], row + 64 * v));
        const bool last = line + 1 == lines && i + 1 == positions;
        if (++count % 256 && !last) continue;
        for (int v = 0; v < kVectors; v++)
          own[v].flush(sums + start + 64 * v, channels - start - 64 * v);
      }
    }
  }
}

void quantize(const float* x, float inverse, int32_t zero, int64_t size, uint8_t* to) {
  const __m512 scale = _mm512_set1_ps(inverse);
  const __m512 low = _mm512_set1_ps(-zero), high = _mm512_set1_ps(255 - zero);
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = size - i >= 16 ? 0xffff : (1u << (size - i)) - 1;
    const __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
    // The second operand is taken where one is NaN.
    const __m512i cut = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(y, low), high));
    _mm512_mask_cvtepi32_storeu_epi8(to + i, mask,
                                     _mm512_add_epi32(cut, _mm512_set1_epi32(zero)));
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
const Int8Kernels kernels = {"avx512_vnni", kRows, run, sum_window, quantize, dequantize};

}  // namespace avx512_vnni
}  // namespace laud

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
