// Averages that maskers decide on, in one pass over a map with 16-byte loads.
//
// A patch's decision takes two passes: the logit of each position, which reads the map with
// all multiprocessors however few patches there are, and then the patches' means of logits.
#include "chunks.cuh"
#include "maskers.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kOwnPositions = 4;  // of a thread at a time: loads that are under way together

// `lanes` threads, a power of two up to 32, share a position; kOwnPositions of them follow
// each other.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    logits_kernel(const T* x, const float* weight, int64_t positions, int32_t channels,
                  int32_t lanes, bool vector, float* logits) {
  constexpr int kSize = kChunkSize<T>;
  const int32_t lane = threadIdx.x % lanes;
  const int64_t step = int64_t{gridDim.x} * (kThreads / lanes) * kOwnPositions;
  const int64_t own = (int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes) *
                      kOwnPositions;
  // The same number of turns for all threads of a warp, which add up together.
  for (int64_t turn = 0; turn < positions; turn += step) {
    const int64_t first = turn + own;
    float sums[kOwnPositions] = {};
    for (int32_t channel = lane * kSize; channel < channels; channel += lanes * kSize) {
      float weights[kSize];
#pragma unroll
      for (int e = 0; e < kSize; e++)
        weights[e] = channel + e < channels ? __ldg(weight + channel + e) : 0.f;
#pragma unroll
      for (int i = 0; i < kOwnPositions; i++) {
        if (first + i >= positions) break;
        float values[kSize];
        load_chunk(x + (first + i) * channels + channel, channels - channel, vector, values);
#pragma unroll
        for (int e = 0; e < kSize; e++) sums[i] += values[e] * weights[e];
      }
    }
#pragma unroll
    for (int i = 0; i < kOwnPositions; i++) {
      for (int by = lanes / 2; by > 0; by /= 2)
        sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], by);
      if (lane == 0 && first + i < positions) logits[first + i] = sums[i];
    }
  }
}

// A warp takes a patch at a time, or a block where kWide.
template <bool kWide>
__global__ void __launch_bounds__(kThreads)
    threshold_kernel(const float* logits, const float* bias, PatchGrid grid, bool* mask) {
  __shared__ float sums[kWarps];
  constexpr int kTeam = kWide ? kThreads : 32, kTeams = kThreads / kTeam;
  const int64_t patches = grid.patches();
  for (int64_t p = int64_t{blockIdx.x} * kTeams + threadIdx.x / kTeam; p < patches;
       p += int64_t{gridDim.x} * kTeams) {
    const Patch patch = grid.at(p);
    const int32_t width = int32_t(patch.width), area = int32_t(patch.height) * width;
    const float* from =
        logits + grid.map.row(patch.first.sample, patch.first.y, patch.first.x);
    float sum = 0.f;
    for (int32_t i = threadIdx.x % kTeam; i < area; i += kTeam)
      sum += from[i / width * grid.map.width + i % width];
    sum = warp_sum(sum);
    if constexpr (kWide) {
      __syncthreads();  // the last patch's sums are in use until here
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
      __syncthreads();
      sum = 0.f;
      for (int w = 0; w < kWarps; w++) sum += sums[w];
    }
    if (threadIdx.x % kTeam == 0) mask[p] = !(sum / float(area) + *bias < 0.f);  // NaN is on
  }
}

// The place of a patch in an ascending list, -1 where it is not listed.
__device__ int32_t place_of(const RowMap& rows, int32_t patch) {
  int32_t low = 0, high = rows.listed();
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (rows.index[middle] < patch) low = middle + 1;
    else high = middle;
  }
  return low < rows.listed() && rows.index[low] == patch ? low : -1;
}

// A block takes a patch at a time.
__global__ void __launch_bounds__(kThreads)
    sums_mask_kernel(const __grid_constant__ PatchSums s, const float* weight, const float* bias,
                     PatchGrid grid, bool* mask) {
  __shared__ float parts[kWarps];
  const int64_t pieces = pieces_of(s.rows.area) * s.channels;
  for (int32_t p = int32_t(blockIdx.x); p < s.rows.patches; p += int32_t(gridDim.x)) {
    const int32_t listed = s.listed ? place_of(s.rows, p) : -1, unit = listed < 0 ? p : listed;
    const float* const from = listed < 0 ? s.whole : s.listed;
    const int32_t bands = s.rows.bands(unit);
    const int64_t own = int64_t{p} * s.channels;
    float logit = 0.f;
    for (int32_t c = threadIdx.x; c < s.channels; c += kThreads) {
      float sum = 0.f;
      if (from) {
        for (int32_t k = 0; k < bands; k++)
          sum += from[unit * pieces + int64_t{k} * s.channels + c];
      } else {
        sum = s.sums[own + c];
      }
      s.total[own + c] = sum;
      logit += sum * __ldg(weight + c);
    }
    logit = warp_sum(logit);
    __syncthreads();  // the last patch's parts are in use until here
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = logit;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    logit = 0.f;
    for (int w = 0; w < kWarps; w++) logit += parts[w];
    const Patch patch = grid.at(p);
    mask[p] = !(logit / float(patch.height * patch.width) + *bias < 0.f);  // NaN is on
  }
}

// A block takes 8 chunks of channels of a sample, 32 threads each.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    position_means_kernel(const T* x, int64_t samples, int32_t area, int32_t channels,
                          bool vector, float* means) {
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
      means[sample * channels + first + c] = total / float(area);
    }
  }
}

}  // namespace

cudaError_t launch_logits(const Map& x, const float* weight, float* logits, const Launch& on) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(x.values);
    int32_t lanes = 1;
    while (lanes < 32 && lanes * kChunkSize<T> < x.channels) lanes *= 2;
    const int64_t blocks = ceil_div(x.size.positions(), kThreads / lanes * kOwnPositions);
    return launch(logits_kernel<T>, on, dim3(blocks_for(on, blocks, 8)), dim3(kThreads), 0,
                  values, weight, x.size.positions(), int32_t(x.channels), lanes,
                  in_chunks(values, x.channels * int64_t{sizeof(T)}), logits);
  });
}

cudaError_t launch_threshold(const float* logits, const float* bias, const PatchGrid& grid,
                             bool* mask, const Launch& on) {
  constexpr int64_t kManyPositions = 256;
  if (grid.area() >= kManyPositions)
    return launch(threshold_kernel<true>, on, dim3(blocks_for(on, grid.patches(), 8)),
                  dim3(kThreads), 0, logits, bias, grid, mask);
  return launch(threshold_kernel<false>, on,
                dim3(blocks_for(on, ceil_div(grid.patches(), kWarps), 8)), dim3(kThreads), 0,
                logits, bias, grid, mask);
}

cudaError_t launch_sums_mask(const PatchSums& sums, const float* weight, const float* bias,
                             const PatchGrid& grid, bool* mask, const Launch& on) {
  return launch(sums_mask_kernel, on, dim3(blocks_for(on, grid.patches(), 8)), dim3(kThreads), 0,
                sums, weight, bias, grid, mask);
}

cudaError_t launch_position_means(const Map& x, float* means, const Launch& on) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(x.values);
    const int64_t blocks = x.size.samples * ceil_div(x.channels, 8 * kChunkSize<T>);
    return launch(position_means_kernel<T>, on, dim3(blocks_for(on, blocks, 8)), dim3(kThreads),
                  0, values, x.size.samples, int32_t(x.size.height * x.size.width),
                  int32_t(x.channels), in_chunks(values, x.channels * int64_t{sizeof(T)}), means);
  });
}

}  // namespace laud::cuda
