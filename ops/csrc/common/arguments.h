// What the ops accept; every error names the argument, its value and what is allowed.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "geometry.h"

namespace laud {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The channels of each sample that are computed: the first count[n] groups of index[n].
struct Channels {
  Tensor index, count;
  int64_t group_size = 1;

  bool given() const { return index.defined(); }
};

void check_device(const char* name, const Tensor& tensor, const Tensor& like);
void check_same(const char* name, const Tensor& tensor, const Tensor& like);
// A type that kernels compute in.
void check_floating(const char* name, const Tensor& tensor);
void check_map(const char* name, const Tensor& map);
void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape);
void check_positive(const char* name, int64_t value);

// Units listed by compact(): int32 `index` of at most `limit` units and their `count`.
// On the CPU the values are checked too and the count is returned, elsewhere -1.
int64_t check_units(const Tensor& index, const Tensor& count, int64_t limit);

// (out, in / groups, k, k) weight and (out,) bias of a convolution of `channels` inputs.
void check_conv(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t kernel,
                int64_t channels, int64_t groups);

Channels check_channels(const OptionalTensor& index, const OptionalTensor& count,
                        int64_t group_size, int64_t samples, int64_t width, const Tensor& like);

inline MapSize size_of(const Tensor& map) { return {map.size(0), map.size(2), map.size(3)}; }

// An uninitialised channels-last map.
Tensor empty_map(const Tensor& like, const MapSize& size, int64_t channels);

}  // namespace laud
