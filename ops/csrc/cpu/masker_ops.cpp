// Deciding in one pass over the block's input (CPU).
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <vector>

#include "row_tasks.h"
#include "tensors.h"

namespace laud {
namespace {

// A patch is on where the mean of its positions' logits is not below 0.
template <typename T>
void threshold(const std::vector<T>& logits, T bias, const PatchGrid& grid, Tensor& mask) {
  bool* on = mask.mutable_data_ptr<bool>();
  for (int64_t p = 0; p < grid.patches(); p++) {
    const Patch patch = grid.at(p);
    T sum = 0;
    for (int64_t y = 0; y < patch.height; y++)
      for (int64_t x = 0; x < patch.width; x++)
        sum += logits[grid.map.row(patch.first.sample, patch.first.y + y, patch.first.x + x)];
    on[p] = !(sum / (patch.height * patch.width) + bias < 0);  // NaN is on
  }
}

template <typename T>
void patch_mask_as(const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const PatchGrid& grid, Tensor& mask) {
  const auto& kernels = row_gemm<T>();
  using Sum = typename RowTypes<T>::Sum;
  const int64_t channels = x.size(1);
  const T* from = data_of<T>(x);
  const Sum* w = data_of<Sum>(weight);
  std::vector<Sum> logits(grid.map.positions());
  at::parallel_for(0, grid.map.positions(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) logits[i] = kernels.dot(from + i * channels, w, channels);
  });
  threshold(logits, *data_of<Sum>(bias), grid, mask);
}

Tensor patch_mask(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t window) {
  const auto grid = check_masker(x, weight, bias, window);
  const auto type = compute_type(x);
  Tensor mask = at::empty({x.size(0), grid.rows(), grid.columns()}, x.options().dtype(at::kBool));
  const Tensor w = weight.to(type).contiguous(), b = bias.to(type);
  if (multiplies_bfloat16(x)) {
    patch_mask_as<Bfloat16>(x, w, b, grid, mask);
    return mask;
  }
  const Tensor from = x.to(type);
  AT_DISPATCH_FLOATING_TYPES(type, "patch_mask", [&] {
    patch_mask_as<scalar_t>(from, w, b, grid, mask);
  });
  return mask;
}

template <typename T>
void position_means_as(const Tensor& x, Tensor& means) {
  using Sum = typename RowTypes<T>::Sum;
  const auto& kernels = row_gemm<T>();
  const int64_t channels = x.size(1), area = x.size(2) * x.size(3);
  const T* from = data_of<T>(x);
  Sum* to = data_to<Sum>(means);
  // Lines of 64 channels or more are shared, so that one sample keeps all threads busy.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(channels / 64, at::get_num_threads()));
  const int64_t step = round_up(ceil_div(channels, parts), 16);
  at::parallel_for(0, x.size(0) * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t n = task / parts, first = task % parts * step;
      const int64_t size = std::min(step, channels - first);
      if (size <= 0) continue;
      Sum* sum = to + n * channels + first;
      std::fill(sum, sum + size, Sum(0));
      for (int64_t p = 0; p < area; p++)
        kernels.accumulate(from + (n * area + p) * channels + first, size, sum);
      for (int64_t c = 0; c < size; c++) sum[c] /= area;
    }
  });
}

Tensor position_means(const Tensor& x) {
  check_map("x", x);
  const auto type = compute_type(x);
  Tensor means = at::empty({x.size(0), x.size(1)},
                           x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
  if (multiplies_bfloat16(x)) {
    position_means_as<Bfloat16>(x, means);
    return means;
  }
  const Tensor from = x.to(type);
  AT_DISPATCH_FLOATING_TYPES(type, "position_means", [&] {
    position_means_as<scalar_t>(from, means);
  });
  return means;
}

template <typename T>
void masker_conv1x1_as(const Tensor& x, const Weights<T>& weights, const Tensor& mask_weight,
                       const Tensor& mask_bias, const PatchGrid& grid, Tensor& y, Tensor& mask) {
  using Sum = typename RowTypes<T>::Sum;
  const auto& kernels = row_gemm<T>();
  const int64_t depth = x.size(1), width = y.size(1);
  const T* from = data_of<T>(x);
  const Sum* w = data_of<Sum>(mask_weight);
  T* to = data_to<T>(y);
  std::vector<Sum> logits(grid.map.positions());
  run_rows<T>(weights.layout, weights.data(), grid.map.positions(), true, false,
              [&](int64_t first, int64_t last, RowAddresses<T>& rows) {
                for (int64_t r = first; r < last; r++) {
                  rows.in[r - first] = from + r * depth;
                  rows.out[r - first] = to + r * width;
                  // The row is in the cache when the convolution reads it next.
                  if (rows.first_columns) logits[r] = kernels.dot(from + r * depth, w, depth);
                }
              });
  threshold(logits, *data_of<Sum>(mask_bias), grid, mask);
}

std::tuple<Tensor, Tensor> masker_conv1x1(const Tensor& x, const Tensor& weight,
                                          const Tensor& bias, const Tensor& mask_weight,
                                          const Tensor& mask_bias, int64_t window,
                                          const OptionalTensor& packed) {
  const auto grid = check_masker(x, mask_weight, mask_bias, window);
  check_conv(x, weight, bias, 1, x.size(1), 1);
  const auto type = compute_type(x);
  Tensor mask = at::empty({x.size(0), grid.rows(), grid.columns()}, x.options().dtype(at::kBool));
  const Tensor w = mask_weight.to(type).contiguous(), b = mask_bias.to(type);
  if (multiplies_bfloat16(x)) {
    Tensor y = empty_map(x, size_of(x), weight.size(0));
    masker_conv1x1_as<Bfloat16>(x, {weight, bias, 1, false, packed}, w, b, grid, y, mask);
    return {y, mask};
  }
  const Tensor from = x.to(type);
  Tensor y = empty_map(from, size_of(x), weight.size(0));
  AT_DISPATCH_FLOATING_TYPES(type, "masker_conv1x1", [&] {
    const Weights<scalar_t> weights(weight, bias, 1, false, packed);
    masker_conv1x1_as(from, weights, w, b, grid, y, mask);
  });
  return {y.to(x.scalar_type()), mask};
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("patch_mask", patch_mask);
  m.impl("position_means", position_means);
  m.impl("masker_conv1x1", masker_conv1x1);
}

}  // namespace
}  // namespace laud
