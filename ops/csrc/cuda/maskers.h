// What maskers read of a map (see maskers.cu).
#pragma once
#include "../common/geometry.h"
#include "launch.h"

namespace laud::cuda {

// A channels-last map.
struct Map {
  Type type;
  const void* values;
  MapSize size;
  int64_t channels;
};

// logits[position] = x . weight.
cudaError_t launch_logits(const Map& x, const float* weight, float* logits, const Launch& on);

// mask[p] = mean over the positions of patch p of their logits + bias >= 0.
cudaError_t launch_threshold(const float* logits, const float* bias, const PatchGrid& grid,
                             bool* mask, const Launch& on);

// means (samples, channels).
cudaError_t launch_position_means(const Map& x, float* means, const Launch& on);

}  // namespace laud::cuda
