// Index arithmetic of patches and windows, the same on CPU and CUDA.
//
// Maps are channels-last: position (sample, y, x) of a map of height x width is row
// (sample * height + y) * width + x of a matrix with a column per channel. The patch
// grid covers the output map with patches of `patch_height` x `patch_width` positions;
// those of the last row and column may be partial.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define LAUD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LAUD_HOST_DEVICE inline
#endif

namespace laud {

LAUD_HOST_DEVICE int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

LAUD_HOST_DEVICE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

struct Position {
  int64_t sample, y, x;
};

struct MapSize {
  int64_t samples, height, width;

  LAUD_HOST_DEVICE int64_t positions() const { return samples * height * width; }
  LAUD_HOST_DEVICE int64_t row(int64_t sample, int64_t y, int64_t x) const {
    return (sample * height + y) * width + x;
  }
  LAUD_HOST_DEVICE Position at(int64_t row) const {
    return {row / (height * width), row / width % height, row % width};
  }
  // What a convolution of `stride` writes when it pads by half its window.
  LAUD_HOST_DEVICE MapSize strided(int64_t stride) const {
    return {samples, (height - 1) / stride + 1, (width - 1) / stride + 1};
  }
};

// A patch as its first output position and its extent inside the map.
struct Patch {
  Position first;
  int64_t height, width;
};

struct PatchGrid {
  MapSize map;  // the output map
  int64_t patch_height, patch_width;

  LAUD_HOST_DEVICE static PatchGrid of(MapSize map, int64_t granularity) {
    return {map, min_of(granularity, map.height), min_of(granularity, map.width)};
  }
  LAUD_HOST_DEVICE int64_t rows() const { return ceil_div(map.height, patch_height); }
  LAUD_HOST_DEVICE int64_t columns() const { return ceil_div(map.width, patch_width); }
  LAUD_HOST_DEVICE int64_t patches() const { return map.samples * rows() * columns(); }
  LAUD_HOST_DEVICE int64_t area() const { return patch_height * patch_width; }
  LAUD_HOST_DEVICE Patch at(int64_t index) const {
    const Position p = MapSize{map.samples, rows(), columns()}.at(index);
    const int64_t y = p.y * patch_height, x = p.x * patch_width;
    return {{p.sample, y, x},
            min_of(patch_height, map.height - y),
            min_of(patch_width, map.width - x)};
  }
};

// A 3x3 convolution padded by its dilation.
struct Window {
  int64_t stride, dilation;

  // Input coordinate that tap 0, 1 or 2 of an output coordinate reads; may lie outside.
  LAUD_HOST_DEVICE int64_t reads(int64_t out, int64_t tap) const {
    return out * stride + (tap - 1) * dilation;
  }
};

// Input row that tap (ty, tx) of an output position reads, or -1 in the padding.
LAUD_HOST_DEVICE int64_t input_row(const MapSize& in, const Window& window, const Position& out,
                                   int64_t ty, int64_t tx) {
  const int64_t y = window.reads(out.y, ty), x = window.reads(out.x, tx);
  const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
  return inside ? in.row(out.sample, y, x) : -1;
}

// Calls visit(row, patch, y, x) for rows [first, last) of listed patches; rows beyond the
// map's edge have patch.height or patch.width smaller than their place.
template <typename Visit>
void visit_rows(const PatchGrid& grid, const int32_t* patches, int64_t first, int64_t last,
                const Visit& visit) {
  const int64_t area = grid.area();
  for (int64_t row = first; row < last;) {
    const int64_t p = row / area;
    const Patch patch = grid.at(patches[p]);
    const int64_t end = min_of(last, (p + 1) * area);
    int64_t y = (row - p * area) / grid.patch_width, x = (row - p * area) % grid.patch_width;
    for (; row < end; row++) {
      visit(row, patch, y, x);
      if (++x == grid.patch_width) x = 0, y++;
    }
  }
}

}  // namespace laud
