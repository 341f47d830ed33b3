// What the kernels of avx512_vnni and amx_int8 share; included where both are compiled for
// AVX-512 with VNNI. `Finish` takes four vectors of 16 sums of a row to 64 outputs.
#pragma once
#include <immintrin.h>

#include "int8_gemm.h"

namespace laud {
namespace {

// Packing pairs of vectors interleaves their quarters. Columns are put in order at the end,
// and what is added is put into that order before.
struct Finish {
  const Int8Gemm& g;
  int64_t column;
  __mmask64 columns;
  __m512 multiplier[4];

  Finish(const Int8Gemm& g, int64_t panel, const float* multipliers)
      : g(g), column(panel * Int8Layout::kPanel) {
    const int64_t count = g.columns_of(panel);
    columns = count == 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1;
    for (int v = 0; v < 4; v++) multiplier[v] = _mm512_loadu_ps(multipliers + 16 * v);
  }

  __m512i scaled(__m512i sums, int v) const {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier[v]));
  }

  void row(int64_t row, __m512i a, __m512i b, __m512i c, __m512i d) const {
    const __m512i bytes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = _mm512_packs_epi32(scaled(a, 0), scaled(b, 1));
    __m512i high = _mm512_packs_epi32(scaled(c, 2), scaled(d, 3));
    if (g.add) {
      const __m512i add = _mm512_permutexvar_epi32(
          bytes, _mm512_maskz_loadu_epi8(columns, g.add[row] + column));
      low = _mm512_adds_epi16(low, _mm512_unpacklo_epi8(add, _mm512_setzero_si512()));
      high = _mm512_adds_epi16(high, _mm512_unpackhi_epi8(add, _mm512_setzero_si512()));
    }
    if (g.wide_add) {
      const __m512i split = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
      const int16_t* from = g.wide_add[row] + column;
      low = _mm512_adds_epi16(low, _mm512_permutexvar_epi64(
          split, _mm512_maskz_loadu_epi16(__mmask32(columns), from)));
      high = _mm512_adds_epi16(high, _mm512_permutexvar_epi64(
          split, _mm512_maskz_loadu_epi16(__mmask32(columns >> 32), from + 32)));
    }
    if (g.wide_out) {
      const __m512i join = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
      int16_t* to = g.wide_out[row] + column;
      _mm512_mask_storeu_epi16(to, __mmask32(columns), _mm512_permutexvar_epi64(join, low));
      _mm512_mask_storeu_epi16(to + 32, __mmask32(columns >> 32),
                               _mm512_permutexvar_epi64(join, high));
    }
    const __m512i packed = _mm512_permutexvar_epi32(bytes, _mm512_packus_epi16(low, high));
    _mm512_mask_storeu_epi8(g.out[row] + column, columns, packed);
  }
};

}  // namespace
}  // namespace laud
