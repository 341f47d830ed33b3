// Squeeze-and-excitation on listed patches (CPU).
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "row_tasks.h"
#include "tensors.h"

namespace laud {
namespace {

template <typename T>
struct Excitation {
  const T *weight1, *bias1, *weight2, *bias2;
  int64_t hidden, channels;

  void scales(const T* means, T* to) const {
    const auto dot = row_gemm<T>().dot;
    std::vector<T> inner(hidden);
    for (int64_t h = 0; h < hidden; h++) {
      const T value = dot(means, weight1 + h * channels, channels) + bias1[h];
      inner[h] = value < 0 ? T(0) : value;  // NaN stays
    }
    for (int64_t c = 0; c < channels; c++)
      to[c] = 1 / (1 + std::exp(-dot(inner.data(), weight2 + c * hidden, hidden) - bias2[c]));
  }
};

// Calls visit(row) for the rows of a listed patch that lie inside the map.
template <typename Visit>
void inside_rows(const PatchGrid& grid, const int32_t* patches, int64_t p, const Visit& visit) {
  const Patch patch = grid.at(patches[p]);
  for (int64_t y = 0; y < patch.height; y++)
    for (int64_t x = 0; x < patch.width; x++)
      visit(p * grid.area() + y * grid.patch_width + x);
}

template <typename T>
void excite_as(Tensor& rows, const int32_t* patches, int64_t listed, const PatchGrid& grid,
               const Excitation<T>& excitation) {
  const auto& kernels = row_gemm<T>();
  const int64_t channels = excitation.channels, per_sample = grid.rows() * grid.columns();
  T* values = rows.mutable_data_ptr<T>();
  at::parallel_for(0, grid.map.samples, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> means(channels), scales(channels);
    for (int64_t n = begin; n < end; n++) {
      const int64_t first = std::lower_bound(patches, patches + listed, n * per_sample) - patches;
      const int64_t last =
          std::lower_bound(patches + first, patches + listed, (n + 1) * per_sample) - patches;
      if (first == last) continue;
      std::fill(means.begin(), means.end(), T(0));
      int64_t area = 0;
      for (int64_t p = first; p < last; p++)
        inside_rows(grid, patches, p, [&](int64_t row) {
          kernels.accumulate(values + row * channels, channels, means.data());
          area++;
        });
      for (T& mean : means) mean /= area;
      excitation.scales(means.data(), scales.data());
      for (int64_t p = first; p < last; p++)
        inside_rows(grid, patches, p, [&](int64_t row) {
          T* at = values + row * channels;
          for (int64_t c = 0; c < channels; c++) at[c] *= scales[c];
        });
    }
  });
}

void excite_patches_(Tensor& rows, const Tensor& index, const Tensor& count, int64_t height,
                     int64_t width, int64_t granularity, const Tensor& weight1,
                     const Tensor& bias1, const Tensor& weight2, const Tensor& bias2) {
  const auto call = check_excite(rows, index, count, height, width, granularity, weight1, bias1,
                                 weight2, bias2);
  const int64_t channels = rows.size(2), hidden = weight1.size(0);
  const auto type = compute_type(rows);
  const bool same = type == rows.scalar_type();
  Tensor wide = rows.to(type);
  const Tensor parts[] = {weight1.to(type).contiguous(), bias1.to(type).contiguous(),
                          weight2.to(type).contiguous(), bias2.to(type).contiguous()};
  AT_DISPATCH_FLOATING_TYPES(type, "excite_patches_", [&] {
    const Excitation<scalar_t> excitation{
        parts[0].const_data_ptr<scalar_t>(), parts[1].const_data_ptr<scalar_t>(),
        parts[2].const_data_ptr<scalar_t>(), parts[3].const_data_ptr<scalar_t>(), hidden, channels};
    excite_as(wide, index.const_data_ptr<int32_t>(), call.listed, call.grid, excitation);
  });
  if (!same) rows.copy_(wide);
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) { m.impl("excite_patches_", excite_patches_); }

}  // namespace
}  // namespace laud
