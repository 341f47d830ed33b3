// Averages that maskers and excitation decide on (CUDA).
#include <torch/library.h>

#include "excite.h"
#include "maskers.h"
#include "tensors.h"

namespace laud::cuda {
namespace {

Map map_of(const Tensor& x) {
  return {type_of(x), x.const_data_ptr(), size_of(x), x.size(1)};
}

Tensor patch_mask(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t window) {
  const auto windows = check_masker(x, weight, bias, window);
  check_fits(windows, windows.map);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor w = as_float(weight), b = as_float(bias);
  Tensor mask = at::empty({x.size(0), windows.rows(), windows.columns()},
                          x.options().dtype(at::kBool));
  const Launch on = launch_on_current();
  Tensor logits = at::empty({windows.map.positions()}, x.options().dtype(at::kFloat));
  C10_CUDA_CHECK(launch_logits(map_of(x), w.const_data_ptr<float>(),
                               logits.mutable_data_ptr<float>(), on));
  C10_CUDA_CHECK(launch_threshold(logits.const_data_ptr<float>(), b.const_data_ptr<float>(),
                                  windows, mask.mutable_data_ptr<bool>(), on));
  return mask;
}

std::tuple<Tensor, Tensor> sums_mask(const Tensor& sums, const OptionalTensor& whole,
                                     const Tensor& listed, const Tensor& index,
                                     const Tensor& count, const Tensor& weight, const Tensor& bias,
                                     int64_t area) {
  check_positive("area", area);
  TORCH_CHECK(sums.dim() == 2, "sums must be (N, C), got shape ", sums.sizes());
  const int64_t samples = sums.size(0), channels = sums.size(1), pieces = pieces_of(area);
  // A sample is a patch as large as its map.
  const auto grid = PatchGrid::of({samples, 1, area}, area);
  check_fits(grid, grid.map);
  check_device("index", index, sums);
  check_units(index, count, samples);
  check_sums("listed", listed, {index.numel(), pieces, channels}, sums);
  if (whole) check_sums("whole", *whole, {samples, pieces, channels}, sums);
  else check_sums("sums", sums, {samples, channels}, sums);
  check_shape("weight", weight, {channels});
  check_shape("bias", bias, {1});
  const c10::cuda::CUDAGuard guard(sums.device());
  const Tensor w = as_float(weight), b = as_float(bias);
  const auto options = sums.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor mask = at::empty({samples, 1, 1}, options.dtype(at::kBool));
  Tensor total = at::empty({samples, channels}, options);
  PatchSums s;
  s.rows = RowMap::of(grid, grid.map, {1, 1}, 1, index.numel());
  s.rows.index = index.const_data_ptr<int32_t>();
  s.rows.count = count.const_data_ptr<int32_t>();
  s.sums = sums.const_data_ptr<float>();
  s.whole = whole ? whole->const_data_ptr<float>() : nullptr;
  s.listed = listed.const_data_ptr<float>();
  s.total = total.mutable_data_ptr<float>();
  s.channels = int32_t(channels);
  C10_CUDA_CHECK(launch_sums_mask(s, w.const_data_ptr<float>(), b.const_data_ptr<float>(), grid,
                                  mask.mutable_data_ptr<bool>(), launch_on_current()));
  return {mask, total};
}

Tensor position_means(const Tensor& x) {
  check_map("x", x);
  check_fits(PatchGrid::of(size_of(x), 1), size_of(x));
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor means = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kFloat));
  C10_CUDA_CHECK(launch_position_means(map_of(x), means.mutable_data_ptr<float>(),
                                       launch_on_current()));
  return means;
}

void excite_patches_(Tensor& rows, const Tensor& index, const Tensor& count, int64_t height,
                     int64_t width, int64_t granularity, const Tensor& weight1,
                     const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                     const OptionalTensor& channel_index, const OptionalTensor& channel_count,
                     int64_t group_size) {
  const auto call = check_excite(rows, index, count, height, width, granularity, weight1, bias1,
                                 weight2, bias2, channel_index, channel_count, group_size);
  TORCH_CHECK(!call.channels.given(), "channel_index is not taken on a GPU");
  check_fits(call.grid, call.grid.map);
  const c10::cuda::CUDAGuard guard(rows.device());
  const Tensor w1 = weight1.contiguous(), b1 = bias1.contiguous();
  const Tensor w2 = weight2.contiguous(), b2 = bias2.contiguous();
  const int64_t channels = rows.size(2), samples = call.grid.map.samples;
  Tensor scratch = at::empty({2, samples, channels}, rows.options().dtype(at::kFloat));
  Excitation e;
  e.type = type_of(rows);
  e.rows = rows.mutable_data_ptr();
  e.map = RowMap::of(call.grid, call.grid.map, {1, 1}, 1, index.numel());
  e.map.index = index.const_data_ptr<int32_t>();
  e.map.count = count.const_data_ptr<int32_t>();
  e.channels = int32_t(channels);
  e.hidden = int32_t(weight1.size(0));
  e.weight1 = w1.const_data_ptr(), e.bias1 = b1.const_data_ptr();
  e.weight2 = w2.const_data_ptr(), e.bias2 = b2.const_data_ptr();
  e.means = scratch.mutable_data_ptr<float>();
  e.scales = e.means + samples * channels;
  C10_CUDA_CHECK(launch_excite(e, launch_on_current()));
}

TORCH_LIBRARY_IMPL(laud_mm, CUDA, m) {
  m.impl("patch_mask", patch_mask);
  m.impl("sums_mask", sums_mask);
  m.impl("position_means", position_means);
  m.impl("excite_patches_", excite_patches_);
}

}  // namespace
}  // namespace laud::cuda
