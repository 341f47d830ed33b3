// Listing units (CPU).
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../common/calls.h"

namespace laud {
namespace {

std::tuple<Tensor, Tensor> compact(const Tensor& mask) {
  check_compact(mask);
  const Tensor flags = mask.contiguous();
  const int64_t rows = mask.size(0), units = mask.size(1);
  Tensor index = at::empty({rows, units}, mask.options().dtype(at::kInt));
  Tensor count = at::empty({rows}, mask.options().dtype(at::kInt));
  const bool* on = flags.const_data_ptr<bool>();
  int32_t* to = index.mutable_data_ptr<int32_t>();
  int32_t* counts = count.mutable_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; r++) {
    int64_t n = 0;
    for (int64_t u = 0; u < units; u++) {
      to[r * units + n] = u;  // overwritten by the next unit unless this one is on
      n += on[r * units + u];
    }
    counts[r] = n;
  }
  return {index, count};
}

std::tuple<Tensor, Tensor> halo_positions(const Tensor& index, const Tensor& count, int64_t samples,
                                          int64_t height, int64_t width, int64_t granularity,
                                          int64_t stride, int64_t dilation) {
  const auto [in, grid, listed] =
      check_halo(index, count, samples, height, width, granularity, stride, dilation);
  const Window window{stride, dilation};
  const int32_t* patches = index.const_data_ptr<int32_t>();
  std::vector<uint8_t> needed(in.positions(), 0);
  // Next to one another, windows of neighbours leave no holes: what a patch reads is a rectangle.
  const bool dense = dilation == 1 && stride <= 3;
  for (int64_t p = 0; p < listed; p++) {
    const Patch patch = grid.at(patches[p]);
    const int64_t sample = patch.first.sample;
    const auto mark = [&](int64_t y, int64_t x, int64_t to_y, int64_t to_x) {
      y = std::max<int64_t>(y, 0), x = std::max<int64_t>(x, 0);
      to_y = std::min(to_y, height - 1), to_x = std::min(to_x, width - 1);
      for (; y <= to_y && x <= to_x; y++)
        std::fill_n(&needed[in.row(sample, y, x)], to_x - x + 1, uint8_t(1));
    };
    const int64_t y = patch.first.y, x = patch.first.x;
    if (dense) {
      mark(window.reads(y, 0), window.reads(x, 0), window.reads(y + patch.height - 1, 2),
           window.reads(x + patch.width - 1, 2));
      continue;
    }
    for (int64_t at = 0; at < patch.height * patch.width * 9; at++) {
      const int64_t row = window.reads(y + at / 9 / patch.width, at / 3 % 3);
      const int64_t column = window.reads(x + at / 9 % patch.width, at % 3);
      mark(row, column, row, column);
    }
  }
  Tensor positions = at::empty({in.positions()}, index.options());
  Tensor found = at::empty({1}, index.options());
  int32_t* to = positions.mutable_data_ptr<int32_t>();
  int64_t n = 0;
  for (int64_t i = 0; i < in.positions(); i++) {
    to[n] = i;  // overwritten by the next position unless this one is needed
    n += needed[i];
  }
  *found.mutable_data_ptr<int32_t>() = n;
  return {positions, found};
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("compact", compact);
  m.impl("halo_positions", halo_positions);
}

}  // namespace
}  // namespace laud
