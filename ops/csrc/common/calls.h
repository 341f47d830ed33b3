// The arguments of each operation, checked, and the geometry that follows from them.
//
// Lists stay on the device: their values are checked on the CPU only (`listed` is -1
// elsewhere), and CUDA kernels pass over entries that do not exist.
#pragma once
#include "arguments.h"

namespace laud {

struct PositionsCall {
  MapSize out;
  PatchGrid grid;
  int64_t listed;
  Channels channels;
};

// Of conv1x1_positions.
PositionsCall check_positions(const Tensor& x, const OptionalTensor& index,
                              const OptionalTensor& count, const Tensor& weight,
                              const Tensor& bias, int64_t stride,
                              const OptionalTensor& channel_index,
                              const OptionalTensor& channel_count, int64_t group_size,
                              int64_t granularity);

// Of the patches of a map: bool (N, rows, columns).
void check_active(const Tensor& active, const PatchGrid& grid, const Tensor& like);
// What patches add up to: float32 of a shape.
void check_sums(const char* name, const Tensor& sums, at::IntArrayRef shape, const Tensor& like);

struct PatchesCall {
  PatchGrid grid;
  int64_t listed;
  Channels channels;
};

// Of conv3x3_patches.
PatchesCall check_patches(const Tensor& y, const Tensor& index, const Tensor& count,
                          const Tensor& weight, const Tensor& bias, int64_t granularity,
                          int64_t stride, int64_t dilation, int64_t groups,
                          const OptionalTensor& channel_index,
                          const OptionalTensor& channel_count, int64_t group_size);

// Of conv1x1_add_patches_.
PatchesCall check_add_patches(const Tensor& out, const Tensor& identity, const Tensor& rows,
                              const Tensor& index, const Tensor& count, const Tensor& weight,
                              const Tensor& bias, int64_t granularity,
                              const OptionalTensor& channel_index,
                              const OptionalTensor& channel_count, int64_t group_size);

struct UnitsCall {
  PatchGrid grid;
  int64_t listed;
};

// Of depthwise_norm_patches.
UnitsCall check_depthwise(const Tensor& x, const Tensor& index, const Tensor& count,
                          const Tensor& taps, const Tensor& bias, int64_t granularity);

// Of mlp_add_patches_.
UnitsCall check_mlp(const Tensor& out, const Tensor& identity, const Tensor& rows,
                    const Tensor& index, const Tensor& count, const Tensor& weight1,
                    const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                    int64_t granularity);

// Of excite_patches_.
PatchesCall check_excite(const Tensor& rows, const Tensor& index, const Tensor& count,
                         int64_t height, int64_t width, int64_t granularity,
                         const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                         const Tensor& bias2, const OptionalTensor& channel_index,
                         const OptionalTensor& channel_count, int64_t group_size);

// Of maskers: the windows that are averaged.
PatchGrid check_masker(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t window);

// Of stem_conv: the map that the convolution writes.
MapSize check_stem(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride);

void check_compact(const Tensor& mask);

struct HaloCall {
  MapSize in;
  PatchGrid grid;
  int64_t listed;
};

HaloCall check_halo(const Tensor& index, const Tensor& count, int64_t samples, int64_t height,
                    int64_t width, int64_t granularity, int64_t stride, int64_t dilation);

// A list of rows to copy or add; `what` is its argument's name.
void check_row_list(const char* what, const Tensor& index, const Tensor& like);

void check_tokens(const char* name, const Tensor& tokens);
void check_add_tokens(const Tensor& out, const Tensor& index, const Tensor& rows);

}  // namespace laud
