// Copying and adding whole rows, such as tokens (see row_copies.cu).
#pragma once
#include "launch.h"

namespace laud::cuda {

// The rows `index` lists; entries outside [0, limit) are passed over.
struct ListedRows {
  const int64_t* index;
  int64_t listed, limit;
  int64_t size;  // values of a row
};

// to[i] = from[index[i]], zeros where there is no such row.
cudaError_t launch_gather_rows(Type type, const ListedRows& rows, const void* from, void* to,
                               const Launch& on);

// out[index[i]] += add[i].
cudaError_t launch_add_rows(Type type, const ListedRows& rows, const void* add, void* out,
                            const Launch& on);

}  // namespace laud::cuda
