// Rows of Bfloat16 in vectors of AVX-512. For files compiled for AVX512-BF16 only.
#pragma once
#include <immintrin.h>

#include "row_gemm.h"

namespace laud {
namespace {

constexpr int kLanes = 16;

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? 0xffff : (1u << count) - 1;
}

inline __m512 load(const Bfloat16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512 load(const Bfloat16* p, __mmask16 mask) {
  return widen(_mm256_maskz_loadu_epi16(mask, p));
}

inline void store(Bfloat16* p, __mmask16 mask, __m512 y) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(y));
}

// Adds and rectifies a vector of sums of a row, and writes it. `add` may be null.
inline void finish(__m512 y, const Bfloat16* add, bool relu, __mmask16 mask, Bfloat16* out) {
  if (add) y = _mm512_add_ps(y, load(add, mask));
  // Written so that NaN stays.
  if (relu) y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_LT_OQ),
                                   _mm512_setzero_ps());
  store(out, mask, y);
}

}  // namespace
}  // namespace laud
