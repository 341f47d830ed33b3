// Transforms of Winograd's F(2x2, 3x3), a row of the 4x4 at a time; included by
// row_gemm_impl.h, once per instruction set.

// Row `Row` of B^T d B of a tile: d[4 * y + x] points at `depth` values of position (y, x),
// element x of the row is written at to + x * stride.
template <typename T, int Row>
void winograd_in_row(const T* const* d, int64_t depth, T* to, int64_t stride) {
  using vec = Vec<T>;
  constexpr int first[] = {0, 1, 2, 1}, second[] = {2, 2, 1, 3};
  const T* const* a = d + 4 * first[Row];
  const T* const* b = d + 4 * second[Row];
  const auto transform = [&](auto load, auto store) {
    decltype(load(a[0])) v[4];
    LAUD_UNROLL
    for (int x = 0; x < 4; x++)
      v[x] = Row == 1 ? load(a[x]) + load(b[x]) : load(a[x]) - load(b[x]);
    store(0, v[0] - v[2]);
    store(1, v[1] + v[2]);
    store(2, v[2] - v[1]);
    store(3, v[1] - v[3]);
  };
  int64_t c = 0;
  for (; c + vec::size <= depth; c += vec::size)
    transform([&](const T* row) { return vec::load(row + c); },
              [&](int x, typename vec::type v) { vec::store(to + x * stride + c, v); });
  for (; c < depth; c++)
    transform([&](const T* row) { return row[c]; }, [&](int x, T v) { to[x * stride + c] = v; });
}

// Adds row `Row` of the products, element x at from + x * stride, to relu(A^T m A): out[i]
// points at output position i of the 2x2, null where it is not wanted. Rows go in order.
template <typename T, int Row>
void winograd_out_row(const T* from, int64_t stride, int64_t columns, T* const* out) {
  using vec = Vec<T>;
  const auto transform = [&](auto load, auto store, auto zero) {
    const auto m0 = load(from), m1 = load(from + stride), m2 = load(from + 2 * stride),
               m3 = load(from + 3 * stride);
    const decltype(load(from)) sums[] = {m0 + m1 + m2, m1 - m2 - m3};
    LAUD_UNROLL
    for (int i = 0; i < 4; i++) {
      const int y = i / 2;
      if (!out[i] || Row < y || Row > y + 2) continue;  // the factor is zero
      const auto sum = sums[i % 2];
      if (Row == y) {
        store(out[i], sum);
      } else {
        auto total = y == 1 ? load(out[i]) - sum : load(out[i]) + sum;
        if (Row == y + 2) total = total < zero ? zero : total;
        store(out[i], total);
      }
    }
  };
  int64_t n = 0;
  for (; n + vec::size <= columns; n += vec::size)
    transform([&](const T* p) { return vec::load(p + n); },
              [&](T* p, typename vec::type v) { vec::store(p + n, v); }, typename vec::type{});
  for (; n < columns; n++)
    transform([&](const T* p) { return p[n]; }, [&](T* p, T v) { p[n] = v; }, T(0));
}

template <typename T>
void winograd_in(int row, const T* const* d, int64_t depth, T* to, int64_t stride) {
  switch (row) {
    case 0: return winograd_in_row<T, 0>(d, depth, to, stride);
    case 1: return winograd_in_row<T, 1>(d, depth, to, stride);
    case 2: return winograd_in_row<T, 2>(d, depth, to, stride);
    default: return winograd_in_row<T, 3>(d, depth, to, stride);
  }
}

template <typename T>
void winograd_out(int row, const T* from, int64_t stride, int64_t columns, T* const* out) {
  switch (row) {
    case 0: return winograd_out_row<T, 0>(from, stride, columns, out);
    case 1: return winograd_out_row<T, 1>(from, stride, columns, out);
    case 2: return winograd_out_row<T, 2>(from, stride, columns, out);
    default: return winograd_out_row<T, 3>(from, stride, columns, out);
  }
}
