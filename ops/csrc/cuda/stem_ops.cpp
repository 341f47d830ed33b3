// The first convolution of a network: the library's, then bias, ReLU and pool by a kernel (CUDA).
#include <ATen/ops/conv2d.h>
#include <torch/library.h>

#include "stem.h"
#include "tensors.h"

namespace laud::cuda {
namespace {

Tensor stem_conv(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                 bool pool, const OptionalTensor& /*packed*/) {
  check_stem(x, weight, bias, stride);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto format = at::MemoryFormat::ChannelsLast;
  // Without the bias, which would be an elementwise kernel of its own.
  const Tensor y = at::conv2d(x.contiguous(format), weight.contiguous(format), {}, {stride, stride},
                              {weight.size(2) / 2, weight.size(2) / 2})
                       .contiguous(format);
  const Tensor b = bias.contiguous();
  StemPool p;
  p.type = type_of(x);
  p.in = y.const_data_ptr();
  p.bias = b.const_data_ptr();
  p.size = size_of(y);
  p.channels = y.size(1);
  p.side = pool ? 3 : 1;
  p.stride = pool ? 2 : 1;
  Tensor out = pool ? empty_map(y, p.size.strided(2), y.size(1)) : y;
  p.out = out.mutable_data_ptr();
  C10_CUDA_CHECK(launch_stem_pool(p, launch_on_current()));
  return out;
}

TORCH_LIBRARY_IMPL(laud_mm, CUDA, m) { m.impl("stem_conv", stem_conv); }

}  // namespace
}  // namespace laud::cuda
