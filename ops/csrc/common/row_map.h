// From rows of a matrix product to rows of maps and lists, in 32 bits.
//
// Row r is place r % area of listed patch r / area. Its values are read from the input
// map around the place (`reads_list` false) or from row r of a list; the result goes to
// the place in the output map or to row r of a list. Single positions are patches of 1 x 1.
#pragma once
#include "divider.h"

namespace laud {

// Where a row's values come from and go to; nothing is read or written where `out` is -1.
struct Row {
  int32_t in, out;  // `in`: read by the centre tap
  uint32_t taps;    // bit t: tap t lies inside the map
};

// Rows are added up in bands of kBandRows that lie in one tile, and the bands' parts of a unit
// are its pieces: added in order they give the same sum, whatever the tile.
constexpr int32_t kBandRows = 64;

// Bands that a unit of `area` rows may lie in.
LAUD_HOST_DEVICE int64_t pieces_of(int64_t area) {
  return area < 1 ? 0 : (area + kBandRows - 2) / kBandRows + 1;
}

struct RowMap {
  const int32_t* index = nullptr;  // patches, ascending; null: all
  const int32_t* count = nullptr;  // how many of `units` entries are listed; null: all
  int32_t units = 0, patches = 0, samples = 0, area = 0;
  int32_t patch_height = 0, patch_columns = 0, out_height = 0, out_width = 0;
  int32_t in_height = 0, in_width = 0, stride = 1, dilation = 1, taps = 1;
  bool reads_list = false, writes_list = false;
  Divider by_area, by_sample, by_columns, by_width;

  static RowMap of(const PatchGrid& grid, const MapSize& in, const Window& window, int taps,
                   int64_t units) {
    RowMap m;
    m.units = int32_t(units);
    m.patches = int32_t(grid.patches());
    m.samples = int32_t(grid.map.samples);
    m.area = int32_t(grid.area());
    m.patch_height = int32_t(grid.patch_height);
    m.patch_columns = int32_t(grid.columns());
    m.out_height = int32_t(grid.map.height);
    m.out_width = int32_t(grid.map.width);
    m.in_height = int32_t(in.height);
    m.in_width = int32_t(in.width);
    m.stride = int32_t(window.stride);
    m.dilation = int32_t(window.dilation);
    m.taps = taps;
    m.by_area = Divider::by(grid.area());
    m.by_sample = Divider::by(grid.rows() * grid.columns());
    m.by_columns = Divider::by(grid.columns());
    m.by_width = Divider::by(grid.patch_width);
    return m;
  }
  LAUD_HOST_DEVICE int32_t listed() const {
    const int32_t n = count ? *count : units;
    return n < 0 ? 0 : n < units ? n : units;
  }
  // Added to the centre tap's position.
  LAUD_HOST_DEVICE int32_t tap_offset(int32_t tap) const {
    return taps == 1 ? 0 : ((tap / 3 - 1) * in_width + tap % 3 - 1) * dilation;
  }
  // `row` is less than listed() * area; patches that do not exist give an empty row.
  LAUD_HOST_DEVICE Row row(int32_t row) const {
    const Row none{-1, -1, 0};
    const int32_t unit = by_area.quotient(row), place = row - unit * area;
    const int32_t patch = index ? index[unit] : unit;
    if (patch < 0 || patch >= patches) return none;
    const int32_t sample = by_sample.quotient(patch);
    const int32_t rest = patch - sample * int32_t(by_sample.divisor);
    const int32_t patch_row = by_columns.quotient(rest), py = by_width.quotient(place);
    const int32_t y = patch_row * patch_height + py;
    const int32_t width = int32_t(by_width.divisor);
    const int32_t x = (rest - patch_row * patch_columns) * width + place - py * width;
    if (y >= out_height || x >= out_width) return none;
    Row to{row, writes_list ? row : (sample * out_height + y) * out_width + x, 1};
    if (reads_list) return to;
    to.in = (sample * in_height + y * stride) * in_width + x * stride;
    if (taps == 9) to.taps = inside(y * stride, in_height, 0x007, 0x1c0) &
                             inside(x * stride, in_width, 0x049, 0x124);
    return to;
  }
  // The bands that a unit's rows lie in: the first, and how many.
  LAUD_HOST_DEVICE int32_t first_band(int32_t unit) const { return unit * area / kBandRows; }
  LAUD_HOST_DEVICE int32_t bands(int32_t unit) const {
    return ((unit + 1) * area - 1) / kBandRows - first_band(unit) + 1;
  }
  // The sample of a row that exists.
  LAUD_HOST_DEVICE int32_t sample_of(int32_t row) const {
    const int32_t unit = by_area.quotient(row);
    return by_sample.quotient(index ? index[unit] : unit);
  }
  // The first of the listed units that belongs to `sample` or a later one.
  LAUD_HOST_DEVICE int32_t first_unit(int32_t sample) const {
    const int32_t patch = sample * int32_t(by_sample.divisor);
    int32_t low = 0, high = listed();
    if (!index) return patch < high ? patch : high;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (index[middle] < patch) low = middle + 1;
      else high = middle;
    }
    return low;
  }

 private:
  // Taps left of an input coordinate's range or right of it are cleared.
  LAUD_HOST_DEVICE uint32_t inside(int32_t at, int32_t size, uint32_t first,
                                   uint32_t last) const {
    return 0x1ffu & ~(at < dilation ? first : 0u) & ~(at >= size - dilation ? last : 0u);
  }
};

}  // namespace laud
