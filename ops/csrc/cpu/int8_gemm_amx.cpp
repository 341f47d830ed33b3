// Int8Gemm by the tiles of AMX: 16 rows x 64 inputs times 64 inputs x 16 columns at once.
//
// Tiles are aligned to lines of the cache wherever that is up to us: loads of others take six
// times as long. Two tiles of rows by two of columns are summed up together. A tile of rows is
// read where it lies if its rows are equally far apart; else it is copied, once for all columns.
#include "int8_gemm.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // wrong, of the intrinsics (GCC 12)
#endif
#include <immintrin.h>
#include <stdlib.h>

#include "amx.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8"))),         \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
#pragma GCC target("prefer-vector-width=512")
#endif
#include "int8_avx512.h"

namespace laud {
namespace avx512_vnni {
void run(const Int8Gemm& g);
void sum_window(const uint8_t* first, int64_t lines, int64_t apart, int64_t positions,
                int64_t channels, int32_t* sums);
void quantize(const float* x, float inverse, int32_t zero, int64_t size, uint8_t* to);
void dequantize(const uint8_t* x, float scale, int64_t size, float* to);
}  // namespace avx512_vnni

namespace amx_int8 {

bool allowed() { return tiles_allowed(kAmxInt8); }

namespace {

constexpr int64_t kRows = 16, kInputs = 64, kPanel = Int8Layout::kPanel;
constexpr int64_t kLeastRows = 4;  // fewer are faster by vectors

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <typename T>
T* aligned(int64_t count) {
  return static_cast<T*>(aligned_alloc(64, count * sizeof(T)));
}

// Where the tiles of 16 rows lie, for one tap: their rows, and the next 64 inputs.
struct Rows {
  const uint8_t* first;
  int64_t apart, next;  // bytes
};

class Blocks {
 public:
  explicit Blocks(const Int8Gemm& g) : g_(g), count_((g.rows + kRows - 1) / kRows) {
    const int64_t taps = g.layout.taps;
    rows_ = new Rows[count_ * taps];
    int64_t copies = 0;
    for (int64_t i = 0; i < count_ * taps; i++) copies += !in_place(i);
    copied_ = copies ? aligned<uint8_t>(copies * kRows * g.layout.inputs) : nullptr;
    uint8_t* to = copied_;
    for (int64_t i = 0; i < count_ * taps; i++)
      if (!rows_[i].first) to = copy(i, to);
  }
  ~Blocks() {
    delete[] rows_;
    free(copied_);
  }
  Blocks(const Blocks&) = delete;
  int64_t count() const { return count_; }
  const Rows* taps_of(int64_t block) const { return rows_ + block * g_.layout.taps; }

 private:
  int64_t last_of(int64_t block) const {
    const int64_t last = (block + 1) * kRows;
    return last < g_.rows ? last : g_.rows;
  }
  // Notes where a block's tap lies if it need not be copied.
  bool in_place(int64_t i) {
    const int64_t taps = g_.layout.taps, first = i / taps * kRows, last = last_of(i / taps);
    const uint8_t* const* in = g_.in + i % taps;
    rows_[i].first = nullptr;
    if (last - first < kRows) return false;  // a tile has 16 rows, whether there are or not
    const int64_t apart = in[(first + 1) * taps] - in[first * taps];
    for (int64_t r = first + 1; r < last; r++)
      if (in[r * taps] - in[(r - 1) * taps] != apart) return false;
    rows_[i] = {in[first * taps], apart, kInputs};
    return true;
  }
  uint8_t* copy(int64_t i, uint8_t* to) {
    const int64_t taps = g_.layout.taps, first = i / taps * kRows, size = g_.layout.inputs;
    rows_[i] = {to, kInputs, kRows * kInputs};  // tile after tile
    for (int64_t r = first; r < last_of(i / taps); r++) {
      const uint8_t* from = g_.in[r * taps + i % taps];
      uint8_t* row = to + (r - first) * kInputs;
      for (int64_t k = 0; k < size; k += kInputs)
        _mm512_storeu_si512(row + k * kRows, _mm512_loadu_si512(from + k));
    }
    return to + kRows * size;
  }

  const Int8Gemm& g_;
  int64_t count_;
  Rows* rows_;
  uint8_t* copied_;
};

// Weights that come next, brought to the second-level cache line by line: they are as many as
// the rows are few, and mostly come from far.
struct Ahead {
  const int8_t* at;
  int64_t lines;  // for each 64 inputs

  void fetch() {
    for (int64_t i = 0; i < lines; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// Sums of `Tiles` (1 or 2) blocks of rows and 32 columns, to `sums` [16 * Tiles][64].
template <int Tiles>
inline void multiply(const Int8Gemm& g, const Rows* low, const Rows* high, const int32_t* bias,
                     const int8_t* weight, Ahead& ahead, int32_t* sums) {
  _tile_loadd(0, bias, 0);  // the same in every row
  _tile_loadd(1, bias + 16, 0);
  if (Tiles == 2) {
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
  }
  for (int64_t t = 0; t < g.layout.taps; t++) {
    const uint8_t* a = low[t].first;
    const uint8_t* b = Tiles == 2 ? high[t].first : nullptr;
    for (int64_t k = 0; k < g.layout.inputs; k += kInputs) {
      _tile_loadd(6, weight, 4 * kPanel);
      _tile_loadd(4, a, low[t].apart);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, weight + 64, 4 * kPanel);
      _tile_dpbusd(1, 4, 7);
      a += low[t].next;
      if (Tiles == 2) {
        _tile_loadd(5, b, high[t].apart);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
        b += high[t].next;
      }
      weight += kInputs * kPanel;
      ahead.fetch();
    }
  }
  constexpr int64_t apart = 4 * kPanel;
  _tile_stored(0, sums, apart);
  _tile_stored(1, sums + 16, apart);
  if (Tiles == 2) {
    _tile_stored(2, sums + kRows * kPanel, apart);
    _tile_stored(3, sums + kRows * kPanel + 16, apart);
  }
}

void run(const Int8Gemm& g) {
  if (g.layout.inputs % kInputs || g.rows < kLeastRows) return avx512_vnni::run(g);
  alignas(64) const TileConfig config;
  _tile_loadconfig(&config);
  const Blocks blocks(g);
  alignas(64) int32_t sums[2 * kRows * kPanel];
  for (int64_t index = g.first_panel; index < g.last_panel; index++) {
    const auto panel = Int8Panel::of(g, index);
    const Finish finish(g, index, panel.multiplier);
    const int64_t columns = g.columns_of(index);
    const int64_t steps = g.layout.taps * (g.layout.inputs / kInputs) * ((columns + 31) / 32) *
                          ((blocks.count() + 1) / 2);
    const bool last_panel = index + 1 == g.last_panel;
    Ahead ahead{g.packed + (index + 1) * g.layout.panel_size(),
                last_panel ? 0 : (g.layout.panel_size() / 64 + steps - 1) / steps};
    for (int64_t block = 0; block < blocks.count(); block += 2) {
      const bool two = block + 1 < blocks.count();
      const Rows* low = blocks.taps_of(block);
      const Rows* high = two ? blocks.taps_of(block + 1) : nullptr;
      for (int64_t half = 0; half < columns; half += 32) {
        const auto sum = two ? multiply<2> : multiply<1>;
        sum(g, low, high, panel.bias + half, panel.weight + 4 * half, ahead, sums + half);
      }
      const int64_t first = block * kRows;
      const int64_t last = first + 2 * kRows < g.rows ? first + 2 * kRows : g.rows;
      for (int64_t row = first; row < last; row++) {
        const int32_t* from = sums + (row - first) * kPanel;
        finish.row(row, _mm512_load_si512(from), _mm512_load_si512(from + 16),
                   _mm512_load_si512(from + 32), _mm512_load_si512(from + 48));
      }
    }
  }
  _tile_release();
}

}  // namespace

extern const Int8Kernels kernels;
const Int8Kernels kernels = {"amx_int8", 2 * kRows, run, avx512_vnni::sum_window,
                             avx512_vnni::quantize, avx512_vnni::dequantize};

}  // namespace amx_int8
}  // namespace laud

#if defined(__clang__)
#pragma clang attribute pop
#endif
#elif defined(__x86_64__)
namespace laud {
namespace amx_int8 {
extern const Int8Kernels kernels;
const Int8Kernels kernels = {};
bool allowed() { return false; }
}  // namespace amx_int8
}  // namespace laud
#endif
