// 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): a 2x2 tile of outputs costs 16
// products for each pair of channels instead of 36.
#pragma once
#include "row_tasks.h"

namespace laud {

constexpr int64_t kTaps = 16;  // of a transformed tile
constexpr int64_t kCacheBytes = 1 << 20;

inline int64_t winograd_size(const PackedLayout& layout, int64_t vector) {
  return kTaps * layout.size(vector);
}

// G g G^T of every 3x3 filter; `weight` is (filters, 9), `to` (16, filters).
template <typename T>
void winograd_weights(const T* weight, int64_t filters, T* to) {
  const auto rows = [](const T* g, int64_t step, T* u, int64_t out) {
    u[0] = g[0];
    u[out] = (g[0] + g[step] + g[2 * step]) / 2;
    u[2 * out] = (g[0] - g[step] + g[2 * step]) / 2;
    u[3 * out] = g[2 * step];
  };
  for (int64_t f = 0; f < filters; f++) {
    T half[12], u[kTaps];
    for (int64_t x = 0; x < 3; x++) rows(weight + f * 9 + x, 3, half + x, 3);
    for (int64_t y = 0; y < 4; y++) rows(half + 3 * y, 1, u + 4 * y, 1);
    for (int64_t k = 0; k < kTaps; k++) to[k * filters + f] = u[k];
  }
}

// Sixteen matrices packed one after the other. Product (1, 1) of a tile is part of all
// four outputs with factor 1, so the bias is its own.
template <typename T>
void pack_winograd(const PackedLayout& layout, const T* transformed, const T* bias, T* to) {
  const std::vector<T> zeros(layout.outputs, T(0));
  for (int64_t k = 0; k < kTaps; k++)
    pack(layout, transformed + k * layout.outputs * layout.inputs, k == 5 ? bias : zeros.data(),
         to + k * layout.size(row_gemm<T>().vector));
}

// Tiles of the listed patches of a map `y`; writes relu(conv) to rows of patches.
template <typename T>
struct WinogradTiles {
  PatchGrid grid;
  const int32_t* patches;
  const T* from;
  T* to;
  int64_t depth, width;
  const T* zeros;  // at least `depth`

  int64_t columns() const { return ceil_div(grid.patch_width, 2); }
  int64_t per_patch() const { return ceil_div(grid.patch_height, 2) * columns(); }

  // Where a tile reads (16 rows of the map) and writes (4 rows from `column` on, null outside
  // the patch).
  void addresses(int64_t tile, int64_t column, const T** in, T** out) const {
    const int64_t p = tile / per_patch(), y = tile % per_patch() / columns() * 2;
    const int64_t x = tile % columns() * 2;
    const Patch patch = grid.at(patches[p]);
    for (int64_t i = 0; i < kTaps; i++) {
      // Beyond the patch's own halo the map holds nothing.
      const int64_t ty = y + i / 4, tx = x + i % 4;
      const Position at{patch.first.sample, patch.first.y + y, patch.first.x + x};
      const bool wanted = ty <= patch.height + 1 && tx <= patch.width + 1;
      const int64_t row = wanted ? input_row(grid.map, {1, 1}, at, i / 4, i % 4) : -1;
      in[i] = row < 0 ? zeros : from + row * depth;
    }
    for (int64_t i = 0; i < 4; i++) {
      const int64_t oy = y + i / 2, ox = x + i % 2;
      out[i] = oy < patch.height && ox < patch.width
                   ? to + (p * grid.area() + oy * grid.patch_width + ox) * width + column
                   : nullptr;
    }
  }
};

// A row of the 4x4 tile at a time, so that what is transformed, its products and the outputs
// of a task stay in the second-level cache.
template <typename T>
void run_winograd(const PackedLayout& layout, const T* packed, const WinogradTiles<T>& tiles,
                  int64_t count) {
  if (count == 0) return;
  const auto& kernels = row_gemm<T>();
  const int64_t depth = layout.inputs, size = layout.size(kernels.vector);
  const int64_t tile_bytes = 4 * (depth + 2 * layout.outputs) * static_cast<int64_t>(sizeof(T));
  const int64_t fitting = std::max<int64_t>(kCacheBytes / tile_bytes, 48);
  const auto tasks = Tasks::of(count, layout.outputs, kernels.panel, kernels.rows, at::get_num_threads(),
                               std::min<int64_t>(fitting, 192));
  const int64_t chunk = tasks.chunk_rows, width = std::min(tasks.chunk_columns, layout.outputs);
  at::parallel_for(0, tasks.count(), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> in(4 * chunk * depth), products(4 * chunk * width);
    std::vector<const T*> reads(kTaps * chunk), in_rows(chunk);
    std::vector<T*> product_rows(chunk), writes(4 * chunk);
    for (int64_t r = 0; r < chunk; r++) {
      in_rows[r] = in.data() + r * depth;
      product_rows[r] = products.data() + r * width;
    }
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task / tasks.column_chunks * chunk;
      const int64_t column = task % tasks.column_chunks * tasks.chunk_columns;
      const int64_t last = std::min(layout.outputs, column + tasks.chunk_columns);
      RowGemm<T> g;
      g.rows = std::min(count - first, chunk);
      g.in = in_rows.data();
      g.out = product_rows.data();
      for (int64_t r = 0; r < g.rows; r++)
        tiles.addresses(first + r, column, &reads[kTaps * r], &writes[4 * r]);
      for (int64_t row = 0; row < 4; row++) {
        for (int64_t r = 0; r < g.rows; r++)
          kernels.winograd_in(row, &reads[kTaps * r], depth, &in[r * depth], chunk * depth);
        for (int64_t x = 0; x < 4; x++) {
          set_block(g, layout, 0, packed + (4 * row + x) * size);
          keep_columns(g, column, last);
          g.in_offset = x * chunk * depth;
          g.out_offset = x * chunk * width;
          kernels.run(g);
        }
        for (int64_t r = 0; r < g.rows; r++)
          kernels.winograd_out(row, product_rows[r], chunk * width, last - column,
                               &writes[4 * r]);
      }
    }
  });
}

}  // namespace laud
