// Averages that maskers decide on, in one pass over a map with 16-byte loads.
#include "chunks.cuh"
#include "maskers.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ float warp_sum(float value) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// A block takes a patch at a time, its threads the chunks of the patch's positions.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    patch_mask_kernel(const T* x, const float* weight, const float* bias, PatchGrid grid,
                      int32_t channels, bool vector, bool* mask) {
  __shared__ float sums[kWarps];
  const int32_t chunks = int32_t(ceil_div(channels, kChunkSize<T>));
  const int32_t patches = int32_t(grid.patches());
  for (int32_t p = blockIdx.x; p < patches; p += gridDim.x) {
    const Patch patch = grid.at(p);
    const int32_t width = int32_t(patch.width), area = int32_t(patch.height) * width;
    const int64_t line = grid.map.width;
    const int64_t corner = grid.map.row(patch.first.sample, patch.first.y, patch.first.x);
    float sum = 0.f;
    for (int32_t i = threadIdx.x; i < area * chunks; i += kThreads) {
      const int32_t place = i / chunks, channel = (i - place * chunks) * kChunkSize<T>;
      const int32_t y = place / width;
      float values[kChunkSize<T>];
      load_chunk(x + (corner + y * line + place - y * width) * channels + channel,
                 channels - channel, vector, values);
#pragma unroll
      for (int e = 0; e < kChunkSize<T>; e++)
        if (channel + e < channels) sum += values[e] * __ldg(weight + channel + e);
    }
    sum = warp_sum(sum);
    __syncthreads();  // the last patch's sums are in use until here
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      float total = 0.f;
      for (int w = 0; w < kWarps; w++) total += sums[w];
      mask[p] = total / float(area) + *bias >= 0.f;
    }
  }
}

// A warp takes a patch at a time.
__global__ void __launch_bounds__(kThreads)
    threshold_kernel(const float* logits, const float* bias, PatchGrid grid, bool* mask) {
  const int32_t patches = int32_t(grid.patches());
  for (int32_t p = blockIdx.x * kWarps + threadIdx.x / 32; p < patches; p += gridDim.x * kWarps) {
    const Patch patch = grid.at(p);
    const int32_t width = int32_t(patch.width), area = int32_t(patch.height) * width;
    const float* from =
        logits + grid.map.row(patch.first.sample, patch.first.y, patch.first.x);
    float sum = 0.f;
    for (int32_t i = threadIdx.x % 32; i < area; i += 32)
      sum += from[i / width * grid.map.width + i % width];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) mask[p] = sum / float(area) + *bias >= 0.f;
  }
}

// A block takes 8 chunks of channels of a sample, 32 threads each.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    position_means_kernel(const T* x, int64_t samples, int32_t area, int32_t channels,
                          bool vector, T* means) {
  constexpr int kAcross = 8, kDown = kThreads / kAcross, kSize = kChunkSize<T>;
  __shared__ float sums[kDown][kAcross * kSize];
  const int32_t parts = int32_t(ceil_div(channels, kAcross * kSize));
  const int32_t down = threadIdx.x / kAcross, across = threadIdx.x % kAcross * kSize;
  for (int64_t block = blockIdx.x; block < samples * parts; block += gridDim.x) {
    const int64_t sample = block / parts;
    const int32_t first = int32_t(block % parts) * kAcross * kSize, channel = first + across;
    const T* own = x + sample * area * channels + channel;
    float sum[kSize] = {};
    if (channel < channels) {
#pragma unroll 4
      for (int32_t p = down; p < area; p += kDown) {
        float values[kSize];
        load_chunk(own + int64_t{p} * channels, channels - channel, vector, values);
#pragma unroll
        for (int e = 0; e < kSize; e++) sum[e] += values[e];
      }
    }
    __syncthreads();  // the last sums are in use until here
#pragma unroll
    for (int e = 0; e < kSize; e++) sums[down][across + e] = sum[e];
    __syncthreads();
    const int32_t c = threadIdx.x;
    if (c < kAcross * kSize && first + c < channels) {
      float total = 0.f;
      for (int d = 0; d < kDown; d++) total += sums[d][c];
      means[sample * channels + first + c] = from_float<T>(total / float(area));
    }
  }
}

}  // namespace

cudaError_t launch_patch_mask(const Map& x, const float* weight, const float* bias,
                              const PatchGrid& grid, bool* mask, const Launch& on) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(x.values);
    return launch(patch_mask_kernel<T>, on, dim3(blocks_for(on, grid.patches(), 8)),
                  dim3(kThreads), 0, values, weight, bias, grid, int32_t(x.channels),
                  in_chunks(values, x.channels * int64_t{sizeof(T)}), mask);
  });
}

cudaError_t launch_threshold(const float* logits, const float* bias, const PatchGrid& grid,
                             bool* mask, const Launch& on) {
  return launch(threshold_kernel, on, dim3(blocks_for(on, ceil_div(grid.patches(), kWarps), 8)),
                dim3(kThreads), 0, logits, bias, grid, mask);
}

cudaError_t launch_position_means(const Map& x, void* means, const Launch& on) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(x.values);
    const int64_t blocks = x.size.samples * ceil_div(x.channels, 8 * kChunkSize<T>);
    return launch(position_means_kernel<T>, on, dim3(blocks_for(on, blocks, 8)), dim3(kThreads),
                  0, values, x.size.samples, int32_t(x.size.height * x.size.width),
                  int32_t(x.channels), in_chunks(values, x.channels * int64_t{sizeof(T)}),
                  static_cast<T*>(means));
  });
}

}  // namespace laud::cuda
