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

// mask[p] = mean over the positions of patch p of (x . weight) + bias >= 0.
cudaError_t launch_patch_mask(const Map& x, const float* weight, const float* bias,
                              const PatchGrid& grid, bool* mask, const Launch& on);

// The same, of logits that are known for each position.
cudaError_t launch_threshold(const float* logits, const float* bias, const PatchGrid& grid,
                             bool* mask, const Launch& on);

// means (samples, channels), of x's type.
cudaError_t launch_position_means(const Map& x, void* means, const Launch& on);

}  // namespace laud::cuda
