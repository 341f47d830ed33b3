// Listing units (see units.cu).
#pragma once
#include "../common/geometry.h"
#include "launch.h"

namespace laud::cuda {

// How many values launch_compact needs room for besides its results.
int64_t compact_scratch(int64_t rows, int64_t units);

// index (rows, units) and count (rows) of the flags that are not zero.
cudaError_t launch_compact(const uint8_t* flags, int64_t rows, int64_t units, int32_t* scratch,
                           int32_t* index, int32_t* count, const Launch& on);

// Which positions of `in` a 3x3 convolution reads for listed patches of `grid`: flags of
// in.positions() bytes.
cudaError_t launch_halo_flags(const int32_t* index, const int32_t* count, int64_t units,
                              const PatchGrid& grid, const MapSize& in, const Window& window,
                              uint8_t* flags, const Launch& on);

}  // namespace laud::cuda
