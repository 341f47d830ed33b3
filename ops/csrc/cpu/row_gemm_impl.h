// Included once per instruction set, with LAUD_ISA (a namespace), LAUD_VECTOR_BYTES and
// LAUD_PANEL_VECTORS set. No standard headers with inline functions: they would be compiled
// for this instruction set and could be linked in elsewhere.
#include "row_gemm.h"

#define LAUD_UNROLL _Pragma("GCC unroll 8")

namespace laud {
namespace LAUD_ISA {
namespace {

constexpr int kRows = 6;
constexpr int kVectors = LAUD_PANEL_VECTORS;

template <typename T>
struct Vec {
  static constexpr int size = LAUD_VECTOR_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(LAUD_VECTOR_BYTES)));
  typedef T unaligned
      __attribute__((vector_size(LAUD_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static type load(const T* p) { return *reinterpret_cast<const unaligned*>(p); }
  static void store(T* p, type v) { *reinterpret_cast<unaligned*>(p) = v; }
};

// Writes the tile; `columns` is less than V whole vectors only in the last panel.
template <typename T, int R, int V>
inline void finish(const RowGemm<T>& g, int64_t row, int64_t column, int64_t columns,
                   typename Vec<T>::type (&acc)[R][V]) {
  using vec = Vec<T>;
  const typename vec::type zero = {};
  for (int r = 0; r < R; r++) {
    T* out = g.out[row + r] + g.out_offset + column;
    const T* add = g.add ? g.add[row + r] + g.out_offset + column : nullptr;
    for (int v = 0; v < V; v++) {
      const int64_t left = columns - v * vec::size;
      typename vec::type y = acc[r][v];
      if (left >= vec::size) {
        if (add) y += vec::load(add + v * vec::size);
        if (g.relu) y = y < zero ? zero : y;
        vec::store(out + v * vec::size, y);
      } else {
        for (int64_t i = 0; i < left; i++) {
          T value = y[i];
          if (add) value += add[v * vec::size + i];
          out[v * vec::size + i] = g.relu && value < 0 ? 0 : value;
        }
      }
    }
  }
}

template <typename T, int R, int V, bool Picked>
void tile(const RowGemm<T>& g, int64_t row, int64_t column, int64_t columns, const T* panel) {
  using vec = Vec<T>;
  constexpr int width = V * vec::size;
  typename vec::type acc[R][V];
  LAUD_UNROLL
  for (int r = 0; r < R; r++)
    LAUD_UNROLL
    for (int v = 0; v < V; v++) acc[r][v] = vec::load(g.bias + column + v * vec::size);
  const T* weight = panel;
  for (int64_t t = 0; t < g.taps; t++) {
    const T* in[R];
    LAUD_UNROLL
    for (int r = 0; r < R; r++) in[r] = g.in[(row + r) * g.taps + t] + g.in_offset;
    const T* const tap = panel + t * (g.packed_depth / g.taps) * width;
    _Pragma("GCC unroll 2")
    for (int64_t k = 0; k < g.depth; k++) {
      if (Picked) weight = tap + g.picked[k] * width;
      typename vec::type b[V];
      LAUD_UNROLL
      for (int v = 0; v < V; v++) b[v] = vec::load(weight + v * vec::size);
      if (!Picked) weight += width;
      LAUD_UNROLL
      for (int r = 0; r < R; r++) {
        const T a = in[r][k];
        LAUD_UNROLL
        for (int v = 0; v < V; v++) acc[r][v] += a * b[v];
      }
    }
  }
  finish<T, R, V>(g, row, column, columns, acc);
}

template <typename T, int V, bool Picked>
void rows_of_panel(const RowGemm<T>& g, int64_t column, int64_t columns, const T* panel) {
  int64_t row = 0;
  for (; row + kRows <= g.rows; row += kRows)
    tile<T, kRows, V, Picked>(g, row, column, columns, panel);
  switch (g.rows - row) {
    case 1: return tile<T, 1, V, Picked>(g, row, column, columns, panel);
    case 2: return tile<T, 2, V, Picked>(g, row, column, columns, panel);
    case 3: return tile<T, 3, V, Picked>(g, row, column, columns, panel);
    case 4: return tile<T, 4, V, Picked>(g, row, column, columns, panel);
    case 5: return tile<T, 5, V, Picked>(g, row, column, columns, panel);
  }
}

template <typename T, bool Picked>
void panels(const RowGemm<T>& g) {
  constexpr int64_t size = Vec<T>::size, width = kVectors * size;
  for (int64_t column = 0; column < g.columns; column += width) {
    const T* panel = g.packed + column * g.packed_depth;
    const int64_t columns = g.columns - column < width ? g.columns - column : width;
    switch ((columns + size - 1) / size) {
      case 1: rows_of_panel<T, 1, Picked>(g, column, columns, panel); break;
      case 2: rows_of_panel<T, 2, Picked>(g, column, columns, panel); break;
#if LAUD_PANEL_VECTORS > 2
      case 3: rows_of_panel<T, 3, Picked>(g, column, columns, panel); break;
      case 4: rows_of_panel<T, 4, Picked>(g, column, columns, panel); break;
#endif
    }
  }
}

template <typename T>
void run(const RowGemm<T>& g) {
  g.picked ? panels<T, true>(g) : panels<T, false>(g);
}

template <typename T, int Size>
void pick_runs(const T* row, const int32_t* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i++)
    __builtin_memcpy(to + i * Size, row + int64_t(from[i]) * Size, Size * sizeof(T));
}

template <typename T>
void pick(const T* row, const int32_t* from, int64_t count, int64_t size, T* to) {
  switch (size) {
    case 1: return pick_runs<T, 1>(row, from, count, to);
    case 2: return pick_runs<T, 2>(row, from, count, to);
    case 4: return pick_runs<T, 4>(row, from, count, to);
    case 8: return pick_runs<T, 8>(row, from, count, to);
    default:
      for (int64_t i = 0; i < count; i++)
        __builtin_memcpy(to + i * size, row + from[i] * size, size * sizeof(T));
  }
}

template <typename T>
T dot(const T* row, const T* weight, int64_t size) {
  using vec = Vec<T>;
  typename vec::type sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * vec::size <= size; i += 4 * vec::size)
    LAUD_UNROLL
    for (int v = 0; v < 4; v++)
      sums[v] += vec::load(row + i + v * vec::size) * vec::load(weight + i + v * vec::size);
  for (; i + vec::size <= size; i += vec::size)
    sums[0] += vec::load(row + i) * vec::load(weight + i);
  sums[0] += sums[1] + sums[2] + sums[3];
  T sum = 0;
  for (int v = 0; v < vec::size; v++) sum += sums[0][v];
  for (; i < size; i++) sum += row[i] * weight[i];
  return sum;
}

template <typename T>
void accumulate(const T* row, int64_t size, T* sum) {
  using vec = Vec<T>;
  int64_t i = 0;
  for (; i + vec::size <= size; i += vec::size)
    vec::store(sum + i, vec::load(sum + i) + vec::load(row + i));
  for (; i < size; i++) sum[i] += row[i];
}

template <typename T>
void scale(T* row, const T* scales, int64_t size) {
  using vec = Vec<T>;
  int64_t i = 0;
  for (; i + vec::size <= size; i += vec::size)
    vec::store(row + i, vec::load(row + i) * vec::load(scales + i));
  for (; i < size; i++) row[i] *= scales[i];
}

template <typename T>
void maximum(const T* row, int64_t size, T* to) {
  using vec = Vec<T>;
  int64_t i = 0;
  for (; i + vec::size <= size; i += vec::size) {
    const typename vec::type a = vec::load(to + i), b = vec::load(row + i);
    vec::store(to + i, (b > a) | (b != b) ? b : a);
  }
  for (; i < size; i++)
    if (row[i] > to[i] || row[i] != row[i]) to[i] = row[i];
}

#include "mlp_impl.h"
#include "winograd_impl.h"

template <typename T>
constexpr RowGemmKernels<T> kernels() {
  return {Vec<T>::size, kVectors * Vec<T>::size, kRows, run<T>, pick<T>, dot<T>,
          accumulate<T>, scale<T>, maximum<T>, winograd_in<T>, winograd_out<T>,
          nullptr, nullptr, gelu, normalize<T>, depthwise<T>};
}

}  // namespace

extern const RowGemmKernels<float> floats;
extern const RowGemmKernels<double> doubles;
const RowGemmKernels<float> floats = kernels<float>();
const RowGemmKernels<double> doubles = kernels<double>();

}  // namespace LAUD_ISA
}  // namespace laud
