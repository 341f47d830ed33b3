// What follows the first convolution of a network (see stem.cu).
#pragma once
#include "../common/geometry.h"
#include "launch.h"

namespace laud::cuda {

// Channels-last maps: `in` of the convolution without its bias, `out` of what is pooled. Windows
// of side x side positions are padded by half; a side of 1 pools nothing, and out may be in.
struct StemPool {
  Type type;
  const void *in, *bias;
  void* out;
  MapSize size;  // of `in`
  int64_t channels, side, stride;
};

// out = relu(max over a window of in + bias).
cudaError_t launch_stem_pool(const StemPool& pool, const Launch& on);

}  // namespace laud::cuda
