// What all kernels share: conversions and sums of a warp.
#pragma once
#ifndef LAUD_EMULATED_DEVICE
#include "instructions.cuh"
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "laud_mm needs compute capability 8.0 or later: set TORCH_CUDA_ARCH_LIST=8.0 or above"
#endif

namespace laud::cuda {

// The sum over a warp, in all of its threads.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ inline T from_float(float v);
template <>
__device__ inline float from_float(float v) { return v; }
template <>
__device__ inline __half from_float(float v) { return __float2half_rn(v); }
template <>
__device__ inline __nv_bfloat16 from_float(float v) { return __float2bfloat16_rn(v); }

}  // namespace laud::cuda
