// Squeeze-and-excitation on listed patches (see excite.cu).
#pragma once
#include "../common/row_map.h"
#include "launch.h"

namespace laud::cuda {

struct Excitation {
  Type type;
  void* rows;  // (units, area, channels)
  RowMap map;  // which rows lie inside the map, and whose they are
  int32_t channels, hidden;
  const void *weight1, *bias1;  // (hidden, channels) and (hidden)
  const void *weight2, *bias2;  // (channels, hidden) and (channels)
  float *means, *scales;        // room for (samples, channels) each
};

cudaError_t launch_excite(const Excitation& excitation, const Launch& on);

}  // namespace laud::cuda
