// Shares a RowGemm between threads.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../common/geometry.h"
#include "packing.h"

namespace laud {

// Rows by columns of one matrix, cut into equal tasks.
struct Tasks {
  int64_t row_chunks, chunk_rows, column_chunks, chunk_columns;

  // A chunk of `most` rows should stay in the second-level cache while all panels pass over it.
  static Tasks of(int64_t rows, int64_t columns, int64_t panel, int64_t tile, int64_t threads,
                  int64_t most = 192) {
    constexpr int64_t kLeastRows = 48;
    int64_t row_chunks = ceil_div(rows, most);
    if (rows >= kLeastRows * threads) row_chunks = round_up(row_chunks, threads);
    const int64_t chunk_rows = round_up(ceil_div(rows, row_chunks), tile);
    row_chunks = ceil_div(rows, chunk_rows);
    const int64_t panels = ceil_div(columns, panel);
    const int64_t wanted = row_chunks % threads ? threads : 1;
    const int64_t chunk_panels = ceil_div(panels, std::min(wanted, panels));
    return {row_chunks, chunk_rows, ceil_div(panels, chunk_panels), chunk_panels * panel};
  }
  int64_t count() const { return row_chunks * column_chunks; }
};

// Memory that begins with a line of the cache.
template <typename T>
class AlignedRows {
 public:
  T* of(size_t size) {
    constexpr size_t kLine = 64;
    values_.resize(size + kLine / sizeof(T));
    const size_t over = reinterpret_cast<uintptr_t>(values_.data()) % kLine;
    return values_.data() + (kLine - over) % kLine / sizeof(T);
  }

 private:
  std::vector<T> values_;
};

// Addresses of some rows; `add` only where asked for.
template <typename T>
struct RowAddresses {
  std::vector<const T*> in, add;
  std::vector<T*> out;
  std::vector<T> unused;  // what rows outside the map are added from and written to
  bool first_columns = true;  // false where another task has the same rows already

  // fill(first, last, *this) writes the addresses of rows [first, last).
  template <typename Fill>
  void set(RowGemm<T>& g, int64_t first, int64_t last, bool adds, const Fill& fill) {
    g.rows = last - first;
    in.resize(g.rows * g.taps);
    out.resize(g.rows);
    if (adds) add.resize(g.rows);
    fill(first, last, *this);
    g.in = in.data();
    g.out = out.data();
    g.add = adds ? add.data() : nullptr;
  }
};

// Run rows [0, rows) of a convolution packed as `layout`.
template <typename T, typename Fill>
void run_rows(const PackedLayout& layout, const T* packed, int64_t rows, bool relu, bool adds,
              const Fill& fill) {
  if (rows == 0) return;
  const auto& kernels = row_gemm<T>();
  const auto tasks = Tasks::of(rows, layout.outputs_of(0), kernels.panel, kernels.rows,
                               at::get_num_threads());
  at::parallel_for(0, tasks.count(), 1, [&](int64_t begin, int64_t end) {
    RowAddresses<T> addresses;
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task / tasks.column_chunks * tasks.chunk_rows;
      const int64_t column = task % tasks.column_chunks * tasks.chunk_columns;
      RowGemm<T> g;
      g.relu = relu;
      g.taps = layout.taps;
      addresses.first_columns = column == 0;
      addresses.set(g, first, std::min(rows, first + tasks.chunk_rows), adds, fill);
      for (int64_t block = 0; block < layout.blocks; block++) {
        set_block(g, layout, block, packed);
        const int64_t last = std::min(g.columns, column + tasks.chunk_columns);
        if (column >= last) continue;
        keep_columns(g, column, last);
        kernels.run(g);
      }
    }
  });
}

}  // namespace laud
