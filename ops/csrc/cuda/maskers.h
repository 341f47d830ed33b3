// What maskers read of a map (see maskers.cu).
#pragma once
#include "../common/row_map.h"
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

// What the channels of a map add up to over each patch: the pieces of `listed` for listed patches;
// for others those of `whole`, or what `sums` holds where that is null.
struct PatchSums {
  RowMap rows;  // of the patches, and their list
  const float* sums = nullptr;  // (patches, channels)
  const float *whole = nullptr, *listed = nullptr;  // (units, pieces, channels), see pieces_of
  float* total = nullptr;                           // (patches, channels), takes all of them
  int32_t channels = 0;
};

// mask[p] = total[p] . weight / positions of p + bias >= 0.
cudaError_t launch_sums_mask(const PatchSums& sums, const float* weight, const float* bias,
                             const PatchGrid& grid, bool* mask, const Launch& on);

// means (samples, channels).
cudaError_t launch_position_means(const Map& x, float* means, const Launch& on);

}  // namespace laud::cuda
