// Listing units, copying and adding listed tokens (CUDA).
//
// Rows that do not exist are zeros where they are copied and are passed over where they are
// added to, since looking at the indices here would wait for the device.
#include <torch/library.h>

#include "row_copies.h"
#include "tensors.h"
#include "units.h"

namespace laud::cuda {
namespace {

std::tuple<Tensor, Tensor> list_flags(const Tensor& flags, int64_t rows, int64_t units) {
  const auto options = flags.options().dtype(at::kInt);
  Tensor index = at::empty({rows, units}, options), count = at::empty({rows}, options);
  Tensor scratch = at::empty({compact_scratch(rows, units)}, options);
  C10_CUDA_CHECK(launch_compact(static_cast<const uint8_t*>(flags.const_data_ptr()), rows, units,
                                scratch.mutable_data_ptr<int32_t>(),
                                index.mutable_data_ptr<int32_t>(),
                                count.mutable_data_ptr<int32_t>(), launch_on_current()));
  return {index, count};
}

std::tuple<Tensor, Tensor> compact(const Tensor& mask) {
  check_compact(mask);
  const c10::cuda::CUDAGuard guard(mask.device());
  return list_flags(mask.contiguous(), mask.size(0), mask.size(1));
}

std::tuple<Tensor, Tensor> halo_positions(const Tensor& index, const Tensor& count,
                                          int64_t samples, int64_t height, int64_t width,
                                          int64_t granularity, int64_t stride, int64_t dilation) {
  const auto call =
      check_halo(index, count, samples, height, width, granularity, stride, dilation);
  const c10::cuda::CUDAGuard guard(index.device());
  Tensor flags = at::empty({call.in.positions()}, index.options().dtype(at::kByte));
  C10_CUDA_CHECK(launch_halo_flags(index.const_data_ptr<int32_t>(),
                                   count.const_data_ptr<int32_t>(), index.numel(), call.grid,
                                   call.in, {stride, dilation}, flags.mutable_data_ptr<uint8_t>(),
                                   launch_on_current()));
  const auto [positions, found] = list_flags(flags, 1, flags.numel());
  return {positions[0], found};
}

ListedRows listed_rows(const Tensor& indices, const Tensor& tokens) {
  return {indices.const_data_ptr<int64_t>(), indices.numel(), tokens.size(0) * tokens.size(1),
          tokens.size(2)};
}

Tensor gather_tokens(const Tensor& x, const Tensor& index) {
  check_tokens("x", x);
  check_row_list("index", index, x);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor indices = index.contiguous();
  Tensor to = at::empty({index.numel(), x.size(2)}, x.options());
  C10_CUDA_CHECK(launch_gather_rows(type_of(x), listed_rows(indices, x), x.const_data_ptr(),
                                    to.mutable_data_ptr(), launch_on_current()));
  return to;
}

void scatter_add_tokens_(Tensor& out, const Tensor& index, const Tensor& rows) {
  check_add_tokens(out, index, rows);
  const c10::cuda::CUDAGuard guard(out.device());
  const Tensor indices = index.contiguous(), values = rows.contiguous();
  C10_CUDA_CHECK(launch_add_rows(type_of(out), listed_rows(indices, out),
                                 values.const_data_ptr(), out.mutable_data_ptr(),
                                 launch_on_current()));
}

TORCH_LIBRARY_IMPL(laud_mm, CUDA, m) {
  m.impl("compact", compact);
  m.impl("halo_positions", halo_positions);
  m.impl("gather_tokens", gather_tokens);
  m.impl("scatter_add_tokens_", scatter_add_tokens_);
}

}  // namespace
}  // namespace laud::cuda
