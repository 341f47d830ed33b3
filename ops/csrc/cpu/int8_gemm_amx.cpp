// Int8Gemm by the tiles of AMX: 16 rows x 64 inputs times 64 inputs x 16 columns at once.
//
// Tiles are aligned to lines of the cache wherever that is up to us: loads of others take six
// times as long. Two tiles of rows by two of columns are summed up together. A tile of rows is read where
// it lies if its rows are equally far apart; else it is copied, once for all columns. Where
// there are many inputs, all rows pass over so many of them as keep weights in the first-level
// cache, with sums in memory between.
#include "int8_gemm.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // wrong, of the intrinsics (GCC 12)
#endif
#include <immintrin.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

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

bool allowed() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  if (!(d & kTile) || !(d & kInt8)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of a process
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

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

// Inputs that are summed up in one pass over the rows: of some taps, steps of 64.
struct Piece {
  int64_t first_tap, last_tap, first, last;
};

// Cuts all inputs into pieces.
class Pieces {
 public:
  explicit Pieces(const Int8Layout& l) : taps_(l.taps), steps_(l.inputs / kInputs) {
    constexpr int64_t kSteps = 12;  // 2 KiB of weights each
    parts_ = (steps_ + kSteps - 1) / kSteps;
    part_ = (steps_ + parts_ - 1) / parts_;
    group_ = parts_ > 1 ? 1 : kSteps / steps_;
  }
  int64_t count() const { return (taps_ + group_ - 1) / group_ * parts_; }
  Piece at(int64_t i) const {
    const int64_t tap = i / parts_ * group_, first = i % parts_ * part_;
    return {tap, least(tap + group_, taps_), first, least(first + part_, steps_)};
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  int64_t taps_, steps_, parts_, part_, group_;
};

// Adds a piece to sums of `Tiles` (1 or 2) blocks of rows and 32 columns, at `from` and `to`
// [16 * Tiles][64]; `apart` is the distance in bytes of rows of `from`, or 0 for a bias.
template <int Tiles>
inline void multiply(const Piece& p, const Rows* low, const Rows* high, int64_t steps,
                     const int8_t* panel, const int32_t* from, int64_t apart, int32_t* to) {
  _tile_loadd(0, from, apart);
  _tile_loadd(1, from + 16, apart);
  if (Tiles == 2) {
    const int32_t* next = apart ? from + kRows * kPanel : from;
    _tile_loadd(2, next, apart);
    _tile_loadd(3, next + 16, apart);
  }
  for (int64_t t = p.first_tap; t < p.last_tap; t++) {
    const uint8_t* a = low[t].first + p.first * low[t].next;
    const uint8_t* b = Tiles == 2 ? high[t].first + p.first * high[t].next : nullptr;
    const int8_t* weight = panel + (t * steps + p.first) * kInputs * kPanel;
    for (int64_t k = p.first; k < p.last; k++) {
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
    }
  }
  _tile_stored(0, to, 4 * kPanel);
  _tile_stored(1, to + 16, 4 * kPanel);
  if (Tiles == 2) {
    _tile_stored(2, to + kRows * kPanel, 4 * kPanel);
    _tile_stored(3, to + kRows * kPanel + 16, 4 * kPanel);
  }
}

class Run {
 public:
  explicit Run(const Int8Gemm& g)
      : g_(g), blocks_(g), pieces_(g.layout), steps_(g.layout.inputs / kInputs) {}

  void panel(int64_t index, int32_t* sums) {
    const auto panel = Int8Panel::of(g_, index);
    const Finish finish(g_, index, panel.multiplier);
    const int64_t columns = g_.columns_of(index);
    const bool whole = pieces_.count() == 1;
    for (int64_t i = 0; i < pieces_.count(); i++) {
      if (whole) {
        for (int64_t block = 0; block < blocks_.count(); block += 2) {
          for (int64_t half = 0; half < columns; half += 32)
            multiply_pair(pieces_.at(i), block, half, panel, true, sums);
          finish_pair(finish, block, sums);
        }
        continue;
      }
      for (int64_t half = 0; half < columns; half += 32)
        for (int64_t block = 0; block < blocks_.count(); block += 2)
          multiply_pair(pieces_.at(i), block, half, panel, i == 0, sums + block * kBlock);
    }
    if (whole) return;
    for (int64_t block = 0; block < blocks_.count(); block += 2)
      finish_pair(finish, block, sums + block * kBlock);
  }

  // Values of sums that a panel needs.
  int64_t sums() const { return pieces_.count() == 1 ? 2 * kBlock : (blocks_.count() + 1) * kBlock; }

 private:
  static constexpr int64_t kBlock = kRows * kPanel;

  void multiply_pair(const Piece& piece, int64_t block, int64_t half, const Int8Panel& panel,
                     bool first, int32_t* sums) const {
    const bool two = block + 1 < blocks_.count();
    const auto sum = two ? multiply<2> : multiply<1>;
    sum(piece, blocks_.taps_of(block), two ? blocks_.taps_of(block + 1) : nullptr, steps_,
        panel.weight + 4 * half, first ? panel.bias + half : sums + half,
        first ? 0 : 4 * kPanel, sums + half);
  }
  void finish_pair(const Finish& finish, int64_t block, const int32_t* sums) const {
    const int64_t first = block * kRows;
    const int64_t last = first + 2 * kRows < g_.rows ? first + 2 * kRows : g_.rows;
    for (int64_t row = first; row < last; row++, sums += kPanel)
      finish.row(row, _mm512_loadu_si512(sums), _mm512_loadu_si512(sums + 16),
                 _mm512_loadu_si512(sums + 32), _mm512_loadu_si512(sums + 48));
  }

  const Int8Gemm& g_;
  const Blocks blocks_;
  const Pieces pieces_;
  int64_t steps_;
};

void run(const Int8Gemm& g) {
  if (g.layout.inputs % kInputs || g.rows < kLeastRows) return avx512_vnni::run(g);
  alignas(64) const TileConfig config;
  _tile_loadconfig(&config);
  Run run(g);
  alignas(64) int32_t few[2 * kRows * kPanel];
  const bool fits = run.sums() <= 2 * kRows * kPanel;
  int32_t* sums = fits ? few : aligned<int32_t>(run.sums());
  for (int64_t panel = g.first_panel; panel < g.last_panel; panel++) run.panel(panel, sums);
  if (!fits) free(sums);
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
