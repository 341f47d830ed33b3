// How a product of rows is cut into tiles, and where a tile's values lie in shared memory.
//
// A stage of the pipeline holds kRowBytes of each of the tile's rows (or of the weights'),
// as 16-byte chunks. Chunk c of row r stands at r * kRowBytes + (c ^ r / 2 % 4) * 16, so
// that the same chunk of 8 rows that follow each other covers all 32 banks.
#pragma once
#include "divider.h"

namespace laud {

constexpr int kRowBytes = 64, kChunkBytes = 16, kRowChunks = kRowBytes / kChunkBytes;

LAUD_HOST_DEVICE int32_t chunk_place(int32_t row, int32_t chunk) {
  return row * kRowBytes + ((chunk ^ (row >> 1)) & (kRowChunks - 1)) * kChunkBytes;
}

// A tile of outputs.
struct TileSize {
  int32_t rows, columns;
};

// The tile for a product, since how many rows it has is known on the device only: half of the
// units is taken to be listed. `rows` are those of all units, `columns` those of one group.
//
// A tile of r x c reads (r + c) / (r * c) values per product, from the second-level cache: the
// largest one that leaves a tile for each multiprocessor is taken.
inline TileSize tile_for(int64_t rows, int64_t columns, int64_t groups, int64_t multiprocessors) {
  if (columns <= 32) return {128, 32};
  const int64_t row_tiles = ceil_div(ceil_div(rows, 2), 128) * groups;
  const bool half_used = columns <= 64 || (columns > 128 && columns <= 192);
  if (!half_used && row_tiles * ceil_div(columns, 128) >= multiprocessors) return {128, 128};
  if (row_tiles * ceil_div(columns, 64) >= multiprocessors) return {128, 64};
  return {64, 64};
}

struct TileId {
  int32_t sample, row_tile, group, column_tile;
};

// Tiles of all rows by all columns, columns fastest; `samples` is 1 unless every sample
// has its own weights. There may be more tiles than listed rows need.
struct TileGrid {
  int32_t samples = 1, row_tiles = 0, column_tiles = 0, groups = 1;
  Divider by_sample, by_row, by_group;

  static TileGrid of(int64_t samples, int64_t rows, int64_t groups, int64_t columns,
                     int tile_rows, int tile_columns) {
    TileGrid t;
    t.samples = int32_t(samples);
    t.row_tiles = int32_t(ceil_div(rows, tile_rows));
    t.column_tiles = int32_t(ceil_div(columns, tile_columns));
    t.groups = int32_t(groups);
    t.by_group = Divider::by(t.column_tiles);
    t.by_row = Divider::by(groups * t.column_tiles);
    t.by_sample = Divider::by(groups * t.column_tiles * t.row_tiles);
    return t;
  }
  LAUD_HOST_DEVICE int64_t tiles() const { return int64_t{samples} * row_tiles * row_size(); }
  LAUD_HOST_DEVICE int32_t row_size() const { return groups * column_tiles; }
  LAUD_HOST_DEVICE TileId at(int32_t tile) const {
    const int32_t sample = by_sample.quotient(tile), in_sample = by_sample.remainder(tile);
    const int32_t row = by_row.quotient(in_sample), in_row = by_row.remainder(in_sample);
    return {sample, row, by_group.quotient(in_row), by_group.remainder(in_row)};
  }
};

}  // namespace laud
