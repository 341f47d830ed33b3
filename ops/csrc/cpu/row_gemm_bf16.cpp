// RowGemm of Bfloat16 by the dot products of AVX512-BF16: two inputs for each lane and cycle.
#include "row_gemm.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,prefer-vector-width=512")
#endif

#include "bfloat16_vectors.h"

namespace laud {
namespace avx512_bf16 {
namespace {

constexpr int kRows = 6, kVectors = 4;

inline __m512bh pairs_of(int32_t pair) { return (__m512bh)_mm512_set1_epi32(pair); }

template <int R, int V>
inline void write(const RowGemm<Bfloat16>& g, int64_t row, int64_t column, int64_t columns,
                  const __m512 (&acc)[R][V]) {
  for (int r = 0; r < R; r++) {
    Bfloat16* out = g.out[row + r] + g.out_offset + column;
    const Bfloat16* add = g.add ? g.add[row + r] + g.out_offset + column : nullptr;
    for (int v = 0; v < V; v++) {
      const int64_t left = columns - v * kLanes;
      if (left <= 0) break;
      finish(acc[r][v], add ? add + v * kLanes : nullptr, g.relu, first_lanes(left),
             out + v * kLanes);
    }
  }
}

template <int R, int V, bool Picked>
void tile(const RowGemm<Bfloat16>& g, int64_t row, int64_t column, int64_t columns,
          const Bfloat16* panel) {
  constexpr int width = 2 * V * kLanes;
  const Bfloat16* weight = panel;
  __m512 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = _mm512_loadu_ps(g.bias + column + v * kLanes);
  for (int64_t t = 0; t < g.taps; t++) {
    const Bfloat16* in[R];
    for (int r = 0; r < R; r++) in[r] = g.in[(row + r) * g.taps + t] + g.in_offset;
    const Bfloat16* const tap = panel + t * (g.packed_depth / g.taps) * V * kLanes;
    int64_t k = 0;
    for (; k + 2 <= g.depth; k += 2) {
      if (Picked) weight = tap + g.picked[k / 2] * width;
      __m512bh b[V];
      for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_si512(weight + 2 * v * kLanes);
      for (int r = 0; r < R; r++) {
        int32_t pair;
        __builtin_memcpy(&pair, in[r] + k, sizeof(pair));
        const __m512bh a = pairs_of(pair);
        for (int v = 0; v < V; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
      }
      weight += width;
    }
    if (k < g.depth) {  // an odd input alone: what follows it is not the row's
      for (int r = 0; r < R; r++) {
        const __m512bh a = pairs_of(in[r][k].bits);
        for (int v = 0; v < V; v++)
          acc[r][v] = _mm512_dpbf16_ps(
              acc[r][v], a, (__m512bh)_mm512_loadu_si512(weight + 2 * v * kLanes));
      }
      weight += width;
    }
  }
  write<R, V>(g, row, column, columns, acc);
}

template <int V, bool Picked>
void rows_of_panel(const RowGemm<Bfloat16>& g, int64_t column, int64_t columns,
                   const Bfloat16* panel) {
  int64_t row = 0;
  for (; row + kRows <= g.rows; row += kRows)
    tile<kRows, V, Picked>(g, row, column, columns, panel);
  switch (g.rows - row) {
    case 1: return tile<1, V, Picked>(g, row, column, columns, panel);
    case 2: return tile<2, V, Picked>(g, row, column, columns, panel);
    case 3: return tile<3, V, Picked>(g, row, column, columns, panel);
    case 4: return tile<4, V, Picked>(g, row, column, columns, panel);
    case 5: return tile<5, V, Picked>(g, row, column, columns, panel);
  }
}

template <bool Picked>
void panels(const RowGemm<Bfloat16>& g) {
  constexpr int64_t width = kVectors * kLanes;
  for (int64_t column = 0; column < g.columns; column += width) {
    const Bfloat16* panel = g.packed + column * g.packed_depth;
    const int64_t columns = g.columns - column < width ? g.columns - column : width;
    switch ((columns + kLanes - 1) / kLanes) {
      case 1: rows_of_panel<1, Picked>(g, column, columns, panel); break;
      case 2: rows_of_panel<2, Picked>(g, column, columns, panel); break;
      case 3: rows_of_panel<3, Picked>(g, column, columns, panel); break;
      case 4: rows_of_panel<4, Picked>(g, column, columns, panel); break;
    }
  }
}

void run(const RowGemm<Bfloat16>& g) { g.picked ? panels<true>(g) : panels<false>(g); }

float dot(const Bfloat16* row, const float* weight, int64_t size) {
  constexpr int kSums = 4;  // as many as a multiply-add takes cycles
  __m512 sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes)
    for (int s = 0; s < kSums; s++)
      sums[s] = _mm512_fmadd_ps(load(row + i + s * kLanes), _mm512_loadu_ps(weight + i + s * kLanes),
                                sums[s]);
  for (; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    sums[0] = _mm512_fmadd_ps(load(row + i, mask), _mm512_maskz_loadu_ps(mask, weight + i),
                              sums[0]);
  }
  return _mm512_reduce_add_ps(sums[0] + sums[1] + (sums[2] + sums[3]));
}

void accumulate(const Bfloat16* row, int64_t size, float* sum) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), load(row + i)));
  for (; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    const __m512 y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sum + i), load(row + i, mask));
    _mm512_mask_storeu_ps(sum + i, mask, y);
  }
}

void scale(Bfloat16* row, const float* scales, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    const __m512 y = _mm512_mul_ps(load(row + i, mask), _mm512_maskz_loadu_ps(mask, scales + i));
    store(row + i, mask, y);
  }
}

void maximum(const Bfloat16* row, int64_t size, Bfloat16* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    const __m512 a = load(to + i, mask), b = load(row + i, mask);
    const __mmask16 taken = _mm512_cmp_ps_mask(b, a, _CMP_GT_OQ) |
                            _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
    _mm256_mask_storeu_epi16(to + i, mask & taken, _mm256_maskz_loadu_epi16(mask, row + i));
  }
}

void widen(const Bfloat16* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    _mm512_mask_storeu_ps(to + i, mask, load(from + i, mask));
  }
}

void narrow(const float* from, int64_t size, Bfloat16* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 mask = first_lanes(size - i);
    store(to + i, mask, _mm512_maskz_loadu_ps(mask, from + i));
  }
}

}  // namespace

extern const RowGemmKernels<Bfloat16> bfloats;
const RowGemmKernels<Bfloat16> bfloats = {kLanes, kVectors * kLanes, kRows, run, nullptr, dot,
                                          accumulate, scale, maximum, nullptr, nullptr, widen, narrow,
                                          nullptr, nullptr, nullptr};

}  // namespace avx512_bf16
}  // namespace laud

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
