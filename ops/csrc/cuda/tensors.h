// Tensors as the CUDA launchers take them. Nothing here waits for the device.
#pragma once
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../common/calls.h"
#include "convolutions.h"

namespace laud::cuda {

// On the current device, for the stream that torch would use next.
inline Launch launch_on_current() {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto attribute = [&](cudaDeviceAttr what) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, stream.device_index()));
    return value;
  };
  return {stream, attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// Of a tensor that check_floating has seen.
inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return Type::kHalf;
    case at::kBFloat16: return Type::kBFloat16;
    default: return Type::kFloat;
  }
}

inline Tensor as_float(const Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

// (outputs, taps, inputs / groups) is what a channels-last weight holds.
inline Tensor as_rows(const Tensor& weight) {
  return weight.contiguous(at::MemoryFormat::ChannelsLast);
}

// `weight` and `bias` must outlive it.
inline Conv conv_of(const Tensor& weight, const Tensor& bias, int64_t groups) {
  return {type_of(weight), weight.const_data_ptr(), bias.const_data_ptr(),
          weight.size(1) * groups, weight.size(0), groups};
}

inline UnitList list_of(const Tensor& index, const Tensor& count) {
  return {index.const_data_ptr<int32_t>(), count.const_data_ptr<int32_t>(), index.numel()};
}

inline ChannelList list_of(const Channels& channels) {
  if (!channels.given()) return {};
  return ChannelList::of(channels.index.const_data_ptr<int32_t>(),
                         channels.count.const_data_ptr<int32_t>(), channels.index.size(1),
                         channels.group_size);
}

inline void check_fits(const PatchGrid& grid, const MapSize& in) {
  TORCH_CHECK(fits(grid, in), "maps must have at most ", kMostRows, " positions on CUDA, got ",
              in.positions(), " and ", grid.patches(), " patches of ", grid.area());
}

}  // namespace laud::cuda
