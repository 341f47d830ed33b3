// The three convolutions of a bottleneck, on listed units only (CUDA). The kernels read the
// weights as they are: `packed` is for CPUs and is passed over.
#include <torch/library.h>

#include "../common/precision.h"
#include "maskers.h"
#include "tensors.h"

namespace laud::cuda {
namespace {

// Where the product's units add up.
void set_pieces(RowGemm& gemm, const OptionalTensor& pieces, const Tensor& out) {
  if (!pieces) return;
  TORCH_CHECK(!gemm.channels.index, "pieces must be None with channel_index");
  check_sums("pieces", *pieces, {gemm.rows.units, pieces_of(gemm.rows.area), gemm.out_columns},
             out);
  gemm.pieces = pieces->mutable_data_ptr<float>();
}

void run(RowGemm gemm) {
  // As for torch's matrix products: full precision unless TF32 is allowed.
  gemm.tf32 = gemm.type == Type::kFloat && allows_tf32();
  C10_CUDA_CHECK(launch_row_gemm(gemm, launch_on_current()));
}

Tensor conv1x1_positions(const Tensor& x, const OptionalTensor& index, const OptionalTensor& count,
                         const Tensor& weight, const Tensor& bias, int64_t stride, bool relu,
                         const OptionalTensor& channel_index, const OptionalTensor& channel_count,
                         int64_t group_size, const OptionalTensor& /*packed*/,
                         int64_t granularity) {
  const auto call = check_positions(x, index, count, weight, bias, stride, channel_index,
                                    channel_count, group_size, granularity);
  check_fits(call.grid, size_of(x));
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor w = as_rows(weight), b = bias.contiguous();
  const UnitList list = index ? list_of(*index, *count)
                              : UnitList{nullptr, nullptr, call.out.positions()};
  RowGemm gemm = laud::cuda::conv1x1_positions(conv_of(w, b, 1), size_of(x), call.grid, stride,
                                               list, list_of(call.channels));
  Tensor y = empty_map(x, call.out, weight.size(0));
  gemm.in = x.const_data_ptr();
  gemm.out = y.mutable_data_ptr();
  gemm.relu = relu;
  run(gemm);
  return y;
}

std::tuple<Tensor, Tensor> conv1x1_shortcut(const Tensor& x, const Tensor& active,
                                            const Tensor& weight, const Tensor& bias,
                                            int64_t stride, int64_t granularity, bool sums) {
  const auto call = check_positions(x, {}, {}, weight, bias, stride, {}, {}, 1, granularity);
  const auto grid = PatchGrid::of(call.out, granularity);
  check_active(active, grid, x);
  check_fits(grid, size_of(x));
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor w = as_rows(weight), b = bias.contiguous();
  RowGemm gemm = laud::cuda::conv1x1_positions(conv_of(w, b, 1), size_of(x), grid, stride,
                                               {nullptr, nullptr, grid.patches()}, {});
  Tensor y = empty_map(x, call.out, weight.size(0));
  const OptionalTensor pieces =
      at::empty({sums ? grid.patches() : 0, pieces_of(grid.area()), weight.size(0)},
                x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  gemm.in = x.const_data_ptr();
  gemm.out = y.mutable_data_ptr();
  gemm.active = active.const_data_ptr<bool>();
  if (sums) set_pieces(gemm, pieces, y);
  run(gemm);
  return {y, *pieces};
}

Tensor conv3x3_patches(const Tensor& y, const Tensor& index, const Tensor& count,
                       const Tensor& weight, const Tensor& bias, int64_t granularity,
                       int64_t stride, int64_t dilation, int64_t groups,
                       const OptionalTensor& channel_index, const OptionalTensor& channel_count,
                       int64_t group_size, const OptionalTensor& /*packed*/,
                       bool /*winograd*/, const OptionalTensor& shifts) {
  TORCH_CHECK(!shifts, "shifts must be None on a GPU");
  const auto call = check_patches(y, index, count, weight, bias, granularity, stride, dilation,
                                  groups, channel_index, channel_count, group_size);
  check_fits(call.grid, size_of(y));
  TORCH_CHECK(groups == 1 || !call.channels.given(),
              "channel_index needs groups = 1 on a GPU, got ", groups);
  const c10::cuda::CUDAGuard guard(y.device());
  const Tensor w = as_rows(weight), b = bias.contiguous();
  RowGemm gemm = laud::cuda::conv3x3_patches(conv_of(w, b, groups), size_of(y), call.grid,
                                             {stride, dilation}, list_of(index, count),
                                             list_of(call.channels));
  Tensor rows = at::empty({index.numel(), call.grid.area(), weight.size(0)},
                          y.options().memory_format(at::MemoryFormat::Contiguous));
  gemm.in = y.const_data_ptr();
  gemm.out = rows.mutable_data_ptr();
  run(gemm);
  return rows;
}

void conv1x1_add_patches_(Tensor& out, const Tensor& identity, const Tensor& rows,
                          const Tensor& index, const Tensor& count, const Tensor& weight,
                          const Tensor& bias, int64_t granularity,
                          const OptionalTensor& channel_index,
                          const OptionalTensor& channel_count, int64_t group_size,
                          const OptionalTensor& /*packed*/, const OptionalTensor& shifts,
                          const OptionalTensor& pieces) {
  TORCH_CHECK(!shifts, "shifts must be None on a GPU");
  const auto call = check_add_patches(out, identity, rows, index, count, weight, bias,
                                      granularity, channel_index, channel_count, group_size);
  check_fits(call.grid, call.grid.map);
  const c10::cuda::CUDAGuard guard(out.device());
  const Tensor w = as_rows(weight), b = bias.contiguous();
  RowGemm gemm = laud::cuda::conv1x1_add_patches(conv_of(w, b, 1), call.grid,
                                                 list_of(index, count), list_of(call.channels));
  gemm.in = rows.const_data_ptr();
  gemm.add = identity.const_data_ptr();
  gemm.out = out.mutable_data_ptr();
  set_pieces(gemm, pieces, out);
  run(gemm);
}

// Here, since it is the first convolution that also decides.
std::tuple<Tensor, Tensor> masker_conv1x1(const Tensor& x, const Tensor& weight,
                                          const Tensor& bias, const Tensor& mask_weight,
                                          const Tensor& mask_bias, int64_t window,
                                          const OptionalTensor& /*packed*/) {
  const auto windows = check_masker(x, mask_weight, mask_bias, window);
  check_conv(x, weight, bias, 1, x.size(1), 1);
  const MapSize size = size_of(x);
  check_fits(PatchGrid::of(size, 1), size);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor w = as_rows(weight), b = bias.contiguous();
  const Tensor logit_weight = as_float(mask_weight), logit_bias = as_float(mask_bias);
  RowGemm gemm = laud::cuda::conv1x1_positions(conv_of(w, b, 1), size, PatchGrid::of(size, 1), 1,
                                               {nullptr, nullptr, size.positions()}, {});
  Tensor y = empty_map(x, size, weight.size(0));
  Tensor mask = at::empty({x.size(0), windows.rows(), windows.columns()},
                          x.options().dtype(at::kBool));
  const Tensor logits = at::empty({size.positions()}, x.options().dtype(at::kFloat));
  gemm.in = x.const_data_ptr();
  gemm.out = y.mutable_data_ptr();
  gemm.relu = true;
  gemm.logit_weight = logit_weight.const_data_ptr<float>();
  gemm.logits = logits.mutable_data_ptr<float>();
  run(gemm);
  C10_CUDA_CHECK(launch_threshold(logits.const_data_ptr<float>(),
                                  logit_bias.const_data_ptr<float>(), windows,
                                  mask.mutable_data_ptr<bool>(), launch_on_current()));
  return {y, mask};
}

TORCH_LIBRARY_IMPL(laud_mm, CUDA, m) {
  m.impl("conv1x1_positions", conv1x1_positions);
  m.impl("conv1x1_shortcut", conv1x1_shortcut);
  m.impl("conv3x3_patches", conv3x3_patches);
  m.impl("conv1x1_add_patches_", conv1x1_add_patches_);
  m.impl("masker_conv1x1", masker_conv1x1);
}

}  // namespace
}  // namespace laud::cuda
