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

// A tile of outputs, and what a warp takes of it.
struct TileSize {
  int32_t rows, columns, warp_rows, warp_columns;

  constexpr int64_t outputs() const { return int64_t{rows} * columns; }
  // Values for each input: those that come from the second-level cache, and those that pass
  // through shared memory, where every warp reads its own rows and columns.
  constexpr int64_t read() const { return rows + columns; }
  constexpr int64_t shared() const {
    const int64_t warps = outputs() / (warp_rows * warp_columns);
    return read() + warps * (warp_rows + warp_columns);
  }
};

constexpr TileSize kTiles[] = {
    {128, 256, 64, 64}, {128, 128, 64, 64}, {128, 64, 64, 32}, {64, 64, 32, 32}, {128, 32, 32, 32}};

// The products of half types that an H100 does by mma.sync while a value comes from its
// second-level cache, and while one passes through shared memory; of float32, three TF32 products.
constexpr int64_t kHalfPerRead = 113, kHalfPerShared = 21, kFloatPerRead = 37;

// The tile that makes a product fastest by the limits above, the larger one of two that are equal.
// How many rows are listed is known on the device only: here, half of `rows`, those of all units;
// `columns` are those of one group. Tiles of float32 have at most 128 columns.
inline TileSize tile_for(int64_t rows, int64_t columns, int64_t groups, int64_t multiprocessors,
                         bool halves) {
  TileSize best = kTiles[halves ? 0 : 1];
  int64_t least = INT64_MAX;
  for (const TileSize& tile : kTiles) {
    if (!halves && tile.columns > 128) continue;
    const int64_t tiles =
        ceil_div(ceil_div(rows, 2), tile.rows) * groups * ceil_div(columns, tile.columns);
    // The last wave takes as long as a full one, but the cache serves all tiles together.
    const int64_t waves = ceil_div(tiles, multiprocessors) * multiprocessors;
    const int64_t shared = halves ? kHalfPerShared * tile.shared() : 0;
    const int64_t own = waves * (shared > tile.outputs() ? shared : tile.outputs());
    const int64_t read = tiles * tile.read() * (halves ? kHalfPerRead : kFloatPerRead);
    const int64_t cost = own > read ? own : read;
    if (cost < least) least = cost, best = tile;
  }
  return best;
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
