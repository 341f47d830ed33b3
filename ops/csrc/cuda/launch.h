// Where a kernel runs. Kernels see no torch header, so that they compile in seconds.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace laud::cuda {

enum class Type { kFloat, kHalf, kBFloat16 };

struct Launch {
  cudaStream_t stream;
  int multiprocessors;
  int shared_bytes;  // most a block may have
};

// As many blocks as there is work for, at most `per_multiprocessor` on each; blocks loop.
inline unsigned blocks_for(const Launch& on, int64_t work, int per_multiprocessor) {
  const int64_t most = int64_t{on.multiprocessors} * per_multiprocessor;
  return unsigned(work < 1 ? 1 : work < most ? work : most);
}

}  // namespace laud::cuda
