// RowGemm of Bfloat16 by AMX: a tile is 16 rows by 16 columns, its product takes up to 32 inputs
// at once. Tiles read rows that lie at equal distances and begin with a line of the cache (loads of
// others take several times as long); other rows are copied first.
#include "row_gemm.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define LAUD_AMX 1
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "amx.h"

#if defined(__clang__)
#pragma clang attribute push(                                                            \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif

#include "bfloat16_vectors.h"

namespace laud {
namespace avx512_bf16 {
extern const RowGemmKernels<Bfloat16> bfloats;
}
namespace amx {
namespace {

constexpr int64_t kRows = 16, kColumns = 16, kPairs = 16, kPanel = 64;
constexpr int64_t kLine = 32;  // values of a line of the cache

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Memory of a thread that grows and is used again.
class Scratch {
 public:
  ~Scratch() { free(data_); }
  Bfloat16* of(int64_t values) {
    const int64_t bytes = round_up(values * int64_t(sizeof(Bfloat16)), 64);
    if (bytes > bytes_) {
      free(data_);
      data_ = aligned_alloc(64, bytes);
      if (!data_) abort();
      bytes_ = bytes;
    }
    return static_cast<Bfloat16*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// 16 rows of one tap, `stride` bytes apart.
struct Rows {
  const Bfloat16* first;
  int64_t stride;
};

// How a tap's inputs are cut: `steps` products of `pairs` pairs each, zeros at the end.
struct Depth {
  int64_t pairs, steps, given;  // `given`: pairs that the weights have

  static Depth of(int64_t depth) {
    const int64_t given = (depth + 1) / 2, steps = (given + kPairs - 1) / kPairs;
    return {(given + steps - 1) / steps, steps, given};
  }
  int64_t padded() const { return pairs * steps; }
  int64_t copied() const { return round_up(2 * padded(), kLine); }  // values of a copied row
};

bool aligned(int64_t bytes) { return bytes % (kLine * int64_t(sizeof(Bfloat16))) == 0; }

void configure(int64_t pairs) {
  TileConfig config;
  for (int tile = 0; tile < 8; tile++) {
    config.rows[tile] = tile < 6 ? kRows : pairs;  // 0 to 3: sums, 4 and 5: rows, 6 and 7: weights
    config.row_bytes[tile] = tile == 4 || tile == 5 ? pairs * 4 : kColumns * 4;
  }
  _tile_loadconfig(&config);
}

// Copies `depth` values to whole lines, zeros at the end.
inline void copy_row(const Bfloat16* from, int64_t depth, Bfloat16* to) {
  for (; depth > 0; depth -= kLine, from += kLine, to += kLine) {
    const __mmask32 mask = depth >= kLine ? ~__mmask32(0) : (__mmask32(1) << depth) - 1;
    _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from));
  }
}

// Rows of every tap, a block of 16 after the other; `rows` gets (blocks, taps).
void find_rows(const RowGemm<Bfloat16>& g, const Depth& depth, Rows* rows, Bfloat16* scratch) {
  const bool whole = depth.padded() * 2 == g.depth;
  const int64_t width = depth.copied();
  for (int64_t row = 0; row < g.rows; row += kRows) {
    const int64_t count = g.rows - row < kRows ? g.rows - row : kRows;
    for (int64_t t = 0; t < g.taps; t++, rows++) {
      const Bfloat16* const* in = g.in + row * g.taps + t;
      const int64_t stride = count > 1 ? in[g.taps] - in[0] : 0;
      bool even = whole && count == kRows && aligned(stride * int64_t(sizeof(Bfloat16))) &&
                  aligned(reinterpret_cast<intptr_t>(in[0] + g.in_offset));
      for (int64_t r = 2; even && r < kRows; r++)
        even = in[r * g.taps] - in[(r - 1) * g.taps] == stride;
      if (even) {
        *rows = {in[0] + g.in_offset, stride * int64_t(sizeof(Bfloat16))};
        continue;
      }
      *rows = {scratch, width * int64_t(sizeof(Bfloat16))};
      for (int64_t r = 0; r < count; r++, scratch += width) {
        copy_row(in[r * g.taps] + g.in_offset, g.depth, scratch);
      }
      scratch += (kRows - count) * width;  // rows that are multiplied and not written
    }
  }
}

// One panel's weights in the order that they are multiplied, zeros at each tap's end.
void pick_weights(const RowGemm<Bfloat16>& g, const Depth& depth, const Bfloat16* panel,
                  int64_t width, Bfloat16* to) {
  const int64_t pair = 2 * width;
  for (int64_t t = 0; t < g.taps; t++) {
    const Bfloat16* const tap = panel + t * (g.packed_depth / g.taps) * width;
    for (int64_t k = 0; k < depth.given; k++, to += pair)
      memcpy(to, tap + (g.picked ? g.picked[k] : k) * pair, pair * sizeof(Bfloat16));
    memset(to, 0, (depth.padded() - depth.given) * pair * sizeof(Bfloat16));
    to += (depth.padded() - depth.given) * pair;
  }
}

// bias + sums of R blocks of rows by C of columns are left in `sums`: (16 R, 32).
template <int R, int C>
void multiply(const Rows* rows, int64_t taps, const Depth& depth, const Bfloat16* weights,
              int64_t width, const float* bias, float* sums) {
  _tile_loadd(0, bias, 0);  // the same in every row
  if (C > 1) _tile_loadd(1, bias + kColumns, 0);
  if (R > 1) _tile_loadd(2, bias, 0);
  if (R > 1 && C > 1) _tile_loadd(3, bias + kColumns, 0);
  const int64_t pitch = width * 4, step = depth.pairs * 2;
  for (int64_t t = 0; t < taps; t++) {
    const Bfloat16 *a = rows[t].first, *b = R > 1 ? rows[taps + t].first : nullptr;
    const int64_t a_stride = rows[t].stride, b_stride = R > 1 ? rows[taps + t].stride : 0;
    for (int64_t k = 0; k < depth.steps; k++, weights += depth.pairs * width * 2) {
      _tile_loadd(6, weights, pitch);
      _tile_loadd(4, a + k * step, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      if (C > 1) {
        _tile_loadd(7, weights + 2 * kColumns, pitch);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (R > 1) {
        _tile_loadd(5, b + k * step, b_stride);
        _tile_dpbf16ps(2, 5, 6);
        if (C > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  constexpr int64_t kPitch = 2 * kColumns;
  _tile_stored(0, sums, kPitch * sizeof(float));
  if (C > 1) _tile_stored(1, sums + kColumns, kPitch * sizeof(float));
  if (R > 1) _tile_stored(2, sums + kRows * kPitch, kPitch * sizeof(float));
  if (R > 1 && C > 1)
    _tile_stored(3, sums + kRows * kPitch + kColumns, kPitch * sizeof(float));
}

// A line of each row that is written, and of what is added to it, is on its way meanwhile.
void fetch_written(const RowGemm<Bfloat16>& g, int64_t row, int64_t rows, int64_t at) {
  const bool apart = g.add && g.add[row] != g.out[row];
  for (int64_t r = row; r < row + rows; r++) {
    __builtin_prefetch(g.out[r] + at, 1);
    if (apart) __builtin_prefetch(g.add[r] + at);
  }
}

// `columns` of the 32 at `at` exist.
template <bool Adds>
void write(const RowGemm<Bfloat16>& g, int64_t row, int64_t rows, int64_t at, int64_t columns,
           const float* sums) {
  const __mmask32 mask = columns >= 2 * kColumns ? ~__mmask32(0) : (__mmask32(1) << columns) - 1;
  const __m512 least = _mm512_set1_ps(g.relu ? 0.f : -__builtin_inff());
  for (int64_t r = row; r < row + rows; r++, sums += 2 * kColumns) {
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + kColumns);
    if (Adds) {
      const __m512i add = _mm512_maskz_loadu_epi16(mask, g.add[r] + at);
      low = _mm512_add_ps(low, widen(_mm512_castsi512_si256(add)));
      high = _mm512_add_ps(high, widen(_mm512_extracti64x4_epi64(add, 1)));
    }
    low = _mm512_max_ps(least, low);  // in this order NaN stays
    high = _mm512_max_ps(least, high);
    _mm512_mask_storeu_epi16(g.out[r] + at, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

void run(const RowGemm<Bfloat16>& g) {
  if (g.rows == 0 || g.depth == 0) return avx512_bf16::bfloats.run(g);
  thread_local Scratch copies, found, picks;
  alignas(64) float sums[2 * kRows * 2 * kColumns] = {};
  const Depth depth = Depth::of(g.depth);
  const int64_t blocks = (g.rows + kRows - 1) / kRows;
  Rows* const rows = reinterpret_cast<Rows*>(
      found.of(blocks * g.taps * sizeof(Rows) / sizeof(Bfloat16)));
  find_rows(g, depth, rows, copies.of(blocks * kRows * g.taps * depth.copied()));
  configure(depth.pairs);
  for (int64_t first = 0; first < g.columns; first += kPanel) {
    const int64_t columns = g.columns - first < kPanel ? g.columns - first : kPanel;
    const int64_t width = round_up(columns, kLanes);
    const Bfloat16* panel = g.packed + first * g.packed_depth;
    if (g.picked || depth.padded() > depth.given) {
      Bfloat16* const to = picks.of(g.taps * depth.padded() * 2 * width);
      pick_weights(g, depth, panel, width, to);
      panel = to;
    }
    for (int64_t c = 0; c < columns; c += 2 * kColumns) {
      const bool one = columns - c <= kColumns;
      const int64_t at = g.out_offset + first + c;
      for (int64_t block = 0; block < blocks; block += 2) {
        const bool last = block + 1 == blocks;
        const int64_t row = block * kRows;
        const int64_t count = g.rows - row < 2 * kRows ? g.rows - row : 2 * kRows;
        fetch_written(g, row, count, at);
        const auto kernel = last ? (one ? multiply<1, 1> : multiply<1, 2>)
                                 : (one ? multiply<2, 1> : multiply<2, 2>);
        kernel(rows + block * g.taps, g.taps, depth, panel + 2 * c, width, g.bias + first + c,
               sums);
        (g.add ? write<true> : write<false>)(g, row, count, at, columns - c, sums);
      }
    }
  }
  _tile_release();
}

}  // namespace

bool usable() { return tiles_allowed(kAmxBfloat16); }

RowGemmKernels<Bfloat16> bfloats() {
  RowGemmKernels<Bfloat16> kernels = avx512_bf16::bfloats;
  kernels.run = run;
  kernels.rows = kRows;
  return kernels;
}

}  // namespace amx
}  // namespace laud

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
namespace laud {
namespace amx {
bool usable() { return false; }
RowGemmKernels<Bfloat16> bfloats() { return {}; }
}  // namespace amx
}  // namespace laud
#endif
