// Squeeze-and-excitation in three passes: the means over each sample's computed rows, their
// scales, and the product with the rows.
#include "chunks.cuh"
#include "excite.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// A block takes 8 chunks of channels of a sample, 32 threads each.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    excite_means_kernel(const __grid_constant__ Excitation e, bool vector) {
  constexpr int kAcross = 8, kDown = kThreads / kAcross, kSize = kChunkSize<T>;
  __shared__ float sums[kDown][kAcross * kSize];
  __shared__ int32_t areas[kDown];
  const int32_t parts = int32_t(ceil_div(e.channels, kAcross * kSize));
  const int32_t down = threadIdx.x / kAcross, across = threadIdx.x % kAcross * kSize;
  for (int64_t block = blockIdx.x; block < int64_t{e.map.samples} * parts; block += gridDim.x) {
    const int32_t sample = int32_t(block / parts);
    const int32_t first = int32_t(block % parts) * kAcross * kSize, channel = first + across;
    const int32_t begin = e.map.first_unit(sample) * e.map.area;
    const int32_t end = e.map.first_unit(sample + 1) * e.map.area;
    const T* rows = static_cast<const T*>(e.rows) + channel;
    float sum[kSize] = {};
    int32_t area = 0;
    for (int32_t row = begin + down; row < end; row += kDown) {
      if (e.map.row(row).out < 0) continue;
      area++;
      if (channel >= e.channels) continue;
      float values[kSize];
      load_chunk(rows + int64_t{row} * e.channels, e.channels - channel, vector, values);
#pragma unroll
      for (int i = 0; i < kSize; i++) sum[i] += values[i];
    }
    __syncthreads();  // the last sums are in use until here
#pragma unroll
    for (int i = 0; i < kSize; i++) sums[down][across + i] = sum[i];
    if (across == 0) areas[down] = area;
    __syncthreads();
    const int32_t c = threadIdx.x;
    if (c < kAcross * kSize && first + c < e.channels) {
      float total = 0.f;
      int32_t count = 0;
      for (int d = 0; d < kDown; d++) total += sums[d][c], count += areas[d];
      // Of a sample without rows nothing is scaled.
      e.means[int64_t{sample} * e.channels + first + c] = count ? total / float(count) : 0.f;
    }
  }
}

// bias[unit] + sum over i of weight[unit][i] * from[i], of a warp; in all of its threads.
template <typename T>
__device__ float dot(const void* weight, const void* bias, int32_t unit, const float* from,
                     int32_t size) {
  const T* own = static_cast<const T*>(weight) + int64_t{unit} * size;
  float sum = 0.f;
  for (int32_t i = threadIdx.x % 32; i < size; i += 32) sum += to_float(own[i]) * from[i];
  return warp_sum(sum) + to_float(static_cast<const T*>(bias)[unit]);
}

// A block takes a sample at a time, a warp a unit of a layer.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    excite_scales_kernel(const __grid_constant__ Excitation e) {
  float* const hidden = reinterpret_cast<float*>(dynamic_shared());
  const int32_t warp = threadIdx.x / 32;
  const bool writes = threadIdx.x % 32 == 0;
  for (int32_t sample = blockIdx.x; sample < e.map.samples; sample += gridDim.x) {
    const float* means = e.means + int64_t{sample} * e.channels;
    float* scales = e.scales + int64_t{sample} * e.channels;
    __syncthreads();  // the last sample's units are in use until here
    for (int32_t h = warp; h < e.hidden; h += kWarps) {
      const float value = dot<T>(e.weight1, e.bias1, h, means, e.channels);
      if (writes) hidden[h] = value < 0.f ? 0.f : value;
    }
    __syncthreads();
    for (int32_t c = warp; c < e.channels; c += kWarps) {
      const float value = dot<T>(e.weight2, e.bias2, c, hidden, e.hidden);
      if (writes) scales[c] = 1.f / (1.f + expf(-value));
    }
  }
}

// A warp takes a row at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    excite_rows_kernel(const __grid_constant__ Excitation e, bool vector) {
  constexpr int kSize = kChunkSize<T>;
  const int32_t rows = e.map.listed() * e.map.area;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < rows;
       row += int64_t{gridDim.x} * kWarps) {
    if (e.map.row(int32_t(row)).out < 0) continue;
    const float* scales = e.scales + int64_t{e.map.sample_of(int32_t(row))} * e.channels;
    T* own = static_cast<T*>(e.rows) + row * e.channels;
    for (int32_t channel = threadIdx.x % 32 * kSize; channel < e.channels; channel += 32 * kSize) {
      T values[kSize];
      const int32_t left = e.channels - channel;
      read_chunk(own + channel, left, vector, values);
#pragma unroll
      for (int i = 0; i < kSize; i++)
        if (i < left) values[i] = from_float<T>(to_float(values[i]) * scales[channel + i]);
      write_chunk(own + channel, left, vector, values);
    }
  }
}

}  // namespace

cudaError_t launch_excite(const Excitation& e, const Launch& on) {
  if (e.map.samples == 0 || e.channels == 0) return cudaSuccess;
  return with_type(e.type, [&](auto zero) {
    using T = decltype(zero);
    const bool vector = in_chunks(e.rows, e.channels * int64_t{sizeof(T)});
    const int64_t parts = int64_t{e.map.samples} * ceil_div(e.channels, 8 * kChunkSize<T>);
    auto error = launch(excite_means_kernel<T>, on, dim3(blocks_for(on, parts, 8)),
                        dim3(kThreads), 0, e, vector);
    if (error != cudaSuccess) return error;
    error = launch(excite_scales_kernel<T>, on, dim3(blocks_for(on, e.map.samples, 8)),
                   dim3(kThreads), e.hidden * sizeof(float), e);
    if (error != cudaSuccess) return error;
    const int64_t rows = int64_t{e.map.units} * e.map.area;
    return launch(excite_rows_kernel<T>, on, dim3(blocks_for(on, ceil_div(rows, kWarps), 8)),
                  dim3(kThreads), 0, e, vector);
  });
}

}  // namespace laud::cuda
