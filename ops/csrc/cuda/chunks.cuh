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

// The same without conversion, of memory that the kernel may write to.
template <typename T>
__device__ void read_chunk(const T* from, int64_t size, bool vector, T (&to)[kChunkSize<T>]) {
  if (vector) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    memcpy(to, &bits, sizeof(bits));
  } else {
#pragma unroll
    for (int e = 0; e < kChunkSize<T>; e++) to[e] = e < size ? from[e] : from_float<T>(0.f);
  }
}

template <typename T>
__device__ void write_chunk(T* to, int64_t size, bool vector, const T (&from)[kChunkSize<T>]) {
  if (vector) {
    uint4 bits;
    memcpy(&bits, from, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
  } else {
#pragma unroll
    for (int e = 0; e < kChunkSize<T>; e++)
      if (e < size) to[e] = from[e];
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
