// Squeeze-and-excitation on listed patches (CPU).
#include <torch/library.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "channel_rows.h"
#include "tensors.h"

namespace laud {
namespace {

template <typename T>
struct Excitation {
  const T *weight1, *bias1, *weight2, *bias2;
  int64_t hidden, channels;

  // Scales of the channels that are listed, side by side, from the means of all.
  void scales(const T* means, const std::vector<int32_t>& listed, T* to) const {
    const auto dot = row_gemm<T>().dot;
    std::vector<T> inner(hidden);
    for (int64_t h = 0; h < hidden; h++) {
      const T value = dot(means, weight1 + h * channels, channels) + bias1[h];
      inner[h] = value < 0 ? T(0) : value;  // NaN stays
    }
    for (size_t i = 0; i < listed.size(); i++) {
      const int64_t c = listed[i];
      to[i] = 1 / (1 + std::exp(-dot(inner.data(), weight2 + c * hidden, hidden) - bias2[c]));
    }
  }
};

// The active channels of a sample, or all.
std::vector<int32_t> channels_of(const Channels& channels, int64_t sample, int64_t all) {
  std::vector<int32_t> listed(all);
  std::iota(listed.begin(), listed.end(), 0);
  if (!channels.given()) return listed;
  const ChannelList list = list_of(channels);
  listed.resize(list.channels(sample));
  for (size_t i = 0; i < listed.size(); i++) listed[i] = list.channel(sample, i);
  return listed;
}

// Calls visit(row) for the rows of a listed patch that lie inside the map.
template <typename Visit>
void inside_rows(const PatchGrid& grid, const int32_t* patches, int64_t p, const Visit& visit) {
  const Patch patch = grid.at(patches[p]);
  for (int64_t y = 0; y < patch.height; y++)
    for (int64_t x = 0; x < patch.width; x++)
      visit(p * grid.area() + y * grid.patch_width + x);
}

// `T` is the rows' type, the excitation's what sums of it are taken in.
template <typename T>
void excite_as(Tensor& rows, const int32_t* patches, int64_t listed, const PatchGrid& grid,
               const Channels& picked, const Excitation<typename RowTypes<T>::Sum>& excitation) {
  using Sum = typename RowTypes<T>::Sum;
  const auto& kernels = row_gemm<T>();
  const int64_t channels = excitation.channels, per_sample = grid.rows() * grid.columns();
  T* values = data_to<T>(rows);
  at::parallel_for(0, grid.map.samples, 1, [&](int64_t begin, int64_t end) {
    std::vector<Sum> sums(channels), means(channels), scales(channels);
    for (int64_t n = begin; n < end; n++) {
      const int64_t first = std::lower_bound(patches, patches + listed, n * per_sample) - patches;
      const int64_t last =
          std::lower_bound(patches + first, patches + listed, (n + 1) * per_sample) - patches;
      if (first == last) continue;
      const auto active = channels_of(picked, n, channels);
      if (active.empty()) continue;
      std::fill(sums.begin(), sums.end(), Sum(0));
      int64_t area = 0;
      for (int64_t p = first; p < last; p++)
        inside_rows(grid, patches, p, [&](int64_t row) {
          kernels.accumulate(values + row * channels, active.size(), sums.data());
          area++;
        });
      std::fill(means.begin(), means.end(), Sum(0));
      for (size_t i = 0; i < active.size(); i++) means[active[i]] = sums[i] / area;
      excitation.scales(means.data(), active, scales.data());
      for (int64_t p = first; p < last; p++)
        inside_rows(grid, patches, p, [&](int64_t row) {
          kernels.scale(values + row * channels, scales.data(), active.size());
        });
    }
  });
}

void excite_patches_(Tensor& rows, const Tensor& index, const Tensor& count, int64_t height,
                     int64_t width, int64_t granularity, const Tensor& weight1,
                     const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                     const OptionalTensor& channel_index, const OptionalTensor& channel_count,
                     int64_t group_size) {
  const auto call = check_excite(rows, index, count, height, width, granularity, weight1, bias1,
                                 weight2, bias2, channel_index, channel_count, group_size);
  const int64_t channels = rows.size(2), hidden = weight1.size(0);
  const auto type = compute_type(rows);
  const bool narrow = multiplies_bfloat16(rows), same = narrow || type == rows.scalar_type();
  Tensor wide = narrow ? rows : rows.to(type);
  const Tensor parts[] = {weight1.to(type).contiguous(), bias1.to(type).contiguous(),
                          weight2.to(type).contiguous(), bias2.to(type).contiguous()};
  const int32_t* patches = index.const_data_ptr<int32_t>();
  const auto run = [&](auto of_type) {
    using T = decltype(of_type);
    using Sum = typename RowTypes<T>::Sum;
    excite_as<T>(wide, patches, call.listed, call.grid, call.channels,
                 {data_of<Sum>(parts[0]), data_of<Sum>(parts[1]), data_of<Sum>(parts[2]),
                  data_of<Sum>(parts[3]), hidden, channels});
  };
  if (narrow) run(Bfloat16{});
  else if (type == at::kDouble) run(double{});
  else run(float{});
  if (!same) rows.copy_(wide);
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) { m.impl("excite_patches_", excite_patches_); }

}  // namespace
}  // namespace laud
