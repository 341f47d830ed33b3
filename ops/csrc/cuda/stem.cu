// Bias, ReLU and max pool of a network's first convolution in one pass. The largest of a window
// comes first: bias and ReLU do not change which it is, and there are four times fewer.
#include "chunks.cuh"
#include "stem.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 256;

// A thread takes a chunk of channels of an output position at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stem_pool_kernel(const __grid_constant__ StemPool pool, MapSize to, int32_t chunks,
                     bool vector) {
  constexpr int kSize = kChunkSize<T>;
  const int64_t all = to.positions() * chunks;
  const int32_t pad = int32_t(pool.side / 2);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t position = i / chunks, channel = i % chunks * kSize;
    const int64_t left = pool.channels - channel;
    const Position at = to.at(position);
    float largest[kSize];
#pragma unroll
    for (int e = 0; e < kSize; e++) largest[e] = -INFINITY;
    for (int64_t ty = 0; ty < pool.side; ty++) {
      const int64_t y = at.y * pool.stride + ty - pad;
      if (y < 0 || y >= pool.size.height) continue;
      for (int64_t tx = 0; tx < pool.side; tx++) {
        const int64_t x = at.x * pool.stride + tx - pad;
        if (x < 0 || x >= pool.size.width) continue;
        T values[kSize];
        read_chunk(static_cast<const T*>(pool.in) +
                       pool.size.row(at.sample, y, x) * pool.channels + channel,
                   left, vector, values);
#pragma unroll
        for (int e = 0; e < kSize; e++) {
          const float value = to_float(values[e]);
          if (value > largest[e] || value != value) largest[e] = value;  // NaN stays
        }
      }
    }
    float bias[kSize];
    T result[kSize];
    load_chunk(static_cast<const T*>(pool.bias) + channel, left, vector, bias);
#pragma unroll
    for (int e = 0; e < kSize; e++) {
      const float value = largest[e] + bias[e];
      result[e] = from_float<T>(value < 0.f ? 0.f : value);
    }
    write_chunk(static_cast<T*>(pool.out) + position * pool.channels + channel, left, vector,
                result);
  }
}

}  // namespace

cudaError_t launch_stem_pool(const StemPool& pool, const Launch& on) {
  const MapSize to = pool.size.strided(pool.stride);
  return with_type(pool.type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t row_bytes = pool.channels * int64_t{sizeof(T)};
    const bool vector = in_chunks(pool.in, row_bytes) && in_chunks(pool.bias, row_bytes) &&
                        in_chunks(pool.out, row_bytes);
    const int64_t chunks = ceil_div(pool.channels, kChunkSize<T>);
    return launch(stem_pool_kernel<T>, on,
                  dim3(blocks_for(on, ceil_div(to.positions() * chunks, kThreads), 8)),
                  dim3(kThreads), 0, pool, to, int32_t(chunks), vector);
  });
}

}  // namespace laud::cuda
