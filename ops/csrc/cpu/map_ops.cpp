// Convolutions and pools of whole maps (CPU): torch's own, but for ReLU of half types.
#include <ATen/Parallel.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>
#include <torch/library.h>

#include "../common/calls.h"

namespace laud {
namespace {

Tensor conv_map(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                int64_t dilation, int64_t groups) {
  check_map("x", x);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  check_conv(x, weight, bias, weight.dim() == 4 ? weight.size(2) : 1, x.size(1), groups);
  const int64_t padding = weight.size(2) / 2 * dilation;
  return at::conv2d(x, weight, bias, stride, padding, dilation, groups)
      .contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor max_pool(const Tensor& x, int64_t kernel_size, int64_t stride) {
  check_map("x", x);
  check_positive("kernel_size", kernel_size);
  check_positive("stride", stride);
  return at::max_pool2d(x, kernel_size, stride, kernel_size / 2)
      .contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor average_pool(const Tensor& x, int64_t kernel_size) {
  check_map("x", x);
  check_positive("kernel_size", kernel_size);
  return at::avg_pool2d(x, kernel_size, kernel_size, 0, /*ceil_mode=*/true,
                        /*count_include_pad=*/false)
      .contiguous(at::MemoryFormat::ChannelsLast);
}

// ReLU of values of 16 bits, at the speed of memory. As integers, negative numbers are at most
// `infinity`, the negative one, and NaN with a sign lie above it.
void rectify_halves(void* values, int64_t count, int16_t infinity) {
  constexpr int64_t kShare = 1 << 15;
  int16_t* const y = static_cast<int16_t*>(values);
  at::parallel_for(0, count, kShare, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) y[i] = y[i] <= infinity ? int16_t(0) : y[i];
  });
}

void rectify_(Tensor& y) {
  check_map("y", y);
  switch (y.scalar_type()) {
    case at::kBFloat16: return rectify_halves(y.mutable_data_ptr(), y.numel(), int16_t(0xff80));
    case at::kHalf: return rectify_halves(y.mutable_data_ptr(), y.numel(), int16_t(0xfc00));
    default: at::relu_(y);
  }
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("conv_map", conv_map);
  m.impl("max_pool", max_pool);
  m.impl("average_pool", average_pool);
  m.impl("rectify_", rectify_);
}

}  // namespace
}  // namespace laud
