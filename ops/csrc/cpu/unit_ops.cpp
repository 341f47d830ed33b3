// Listing units (CPU).
#include <ATen/Functions.h>
#include <torch/library.h>

#include <vector>

#include "../common/arguments.h"

namespace laud {
namespace {

std::tuple<Tensor, Tensor> compact(const Tensor& mask) {
  TORCH_CHECK(mask.dim() == 2 && mask.scalar_type() == at::kBool,
              "mask must be bool (rows, units), got ", mask.scalar_type(), " of shape ",
              mask.sizes());
  const Tensor flags = mask.contiguous();
  const int64_t rows = mask.size(0), units = mask.size(1);
  TORCH_CHECK(units <= INT32_MAX, "mask must have at most 2^31 - 1 units a row, got ", units);
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
  for (const auto& [name, value] :
       {std::pair{"height", height}, {"width", width}, {"granularity", granularity},
        {"stride", stride}, {"dilation", dilation}}) {
    check_positive(name, value);
    TORCH_CHECK(value <= INT32_MAX, name, " must be at most 2^31 - 1, got ", value);
  }
  TORCH_CHECK(samples >= 0 && samples <= INT32_MAX, "samples must be from 0 to 2^31 - 1, got ",
              samples);
  const MapSize in{samples, height, width};
  TORCH_CHECK(height * width <= INT32_MAX && in.positions() <= INT32_MAX,
              "the map must have at most 2^31 - 1 positions, got ", samples, " x ", height, " x ",
              width);
  const auto grid = PatchGrid::of(in.strided(stride), granularity);
  const Window window{stride, dilation};
  const int64_t listed = check_units(index, count, grid.patches());
  const int32_t* patches = index.const_data_ptr<int32_t>();
  std::vector<uint8_t> needed(in.positions(), 0);
  for (int64_t p = 0; p < listed; p++) {
    const Patch patch = grid.at(patches[p]);
    // Tap by tap, so that dilated windows keep their holes.
    for (int64_t y = 0; y < patch.height; y++)
      for (int64_t ty = 0; ty < 3; ty++) {
        const int64_t row = window.reads(patch.first.y + y, ty);
        if (row < 0 || row >= height) continue;
        uint8_t* line = &needed[in.row(patch.first.sample, row, 0)];
        for (int64_t x = 0; x < patch.width; x++)
          for (int64_t tx = 0; tx < 3; tx++) {
            const int64_t column = window.reads(patch.first.x + x, tx);
            if (column >= 0 && column < width) line[column] = 1;
          }
      }
  }
  Tensor positions = at::empty({in.positions()}, index.options());
  Tensor found = at::empty({1}, index.options());
  int32_t* to = positions.mutable_data_ptr<int32_t>();
  int64_t n = 0;
  for (int64_t i = 0; i < in.positions(); i++)
    if (needed[i]) to[n++] = i;
  *found.mutable_data_ptr<int32_t>() = n;
  return {positions, found};
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("compact", compact);
  m.impl("halo_positions", halo_positions);
}

}  // namespace
}  // namespace laud
