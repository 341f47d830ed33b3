// Values in chunks of 16 bytes.
#pragma once
#include "device.cuh"

namespace laud::cuda {

template <typename T>
constexpr int kChunkSize = 16 / int(sizeof(T));

// Up to `size` values of `from` as float, zeros after them; `vector` where all are there and
// aligned.
template <typename T>
__device__ void load_chunk(const T* from, int64_t size, bool vector, float (&to)[kChunkSize<T>]) {
  if (vector) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    T values[kChunkSize<T>];
    memcpy(values, &bits, sizeof(bits));
#pragma unroll
    for (int e = 0; e < kChunkSize<T>; e++) to[e] = to_float(values[e]);
  } else {
#pragma unroll
    for (int e = 0; e < kChunkSize<T>; e++) to[e] = e < size ? to_float(from[e]) : 0.f;
  }
}

inline bool in_chunks(const void* at, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(at) % 16 == 0 && row_bytes % 16 == 0;
}

// Calls run(T()) with the C++ type.
template <typename Run>
cudaError_t with_type(Type type, const Run& run) {
  switch (type) {
    case Type::kHalf: return run(__half());
    case Type::kBFloat16: return run(__nv_bfloat16());
    default: return run(float());
  }
}

}  // namespace laud::cuda
