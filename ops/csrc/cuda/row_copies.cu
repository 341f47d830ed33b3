// Copying and adding whole rows, 16 bytes at a time where they are aligned.
//
// Blocks are `threadIdx.x` chunks of a row by `threadIdx.y` rows; the grid's x goes on
// along rows, its y from row to row, and both loop.
#include "chunks.cuh"
#include "../common/geometry.h"
#include "row_copies.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 256;

// Calls move(listed row, the row it names or -1, place in a row) for every chunk.
template <typename T, typename Move>
__device__ void each_chunk(const ListedRows& rows, const Move& move) {
  const int64_t across = int64_t{gridDim.x} * blockDim.x;
  const int64_t down = int64_t{gridDim.y} * blockDim.y;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; i < rows.listed; i += down) {
    const int64_t named = rows.index[i];
    const int64_t row = named >= 0 && named < rows.limit ? named : -1;
    for (int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c * kChunkSize<T> < rows.size;
         c += across)
      move(i, row, c * kChunkSize<T>);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(ListedRows rows, const T* from, T* to, bool vector) {
  each_chunk<T>(rows, [&](int64_t i, int64_t row, int64_t place) {
    T values[kChunkSize<T>];
    const bool exists = row >= 0;
    // Where there is no such row, nothing is read and zeros are written.
    read_chunk(from + (exists ? row * rows.size + place : 0), exists ? rows.size - place : 0,
               vector && exists, values);
    write_chunk(to + i * rows.size + place, rows.size - place, vector, values);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(ListedRows rows, const T* add, T* out, bool vector) {
  each_chunk<T>(rows, [&](int64_t i, int64_t row, int64_t place) {
    if (row < 0) return;
    const int64_t left = rows.size - place;
    T values[kChunkSize<T>], added[kChunkSize<T>];
    read_chunk(out + row * rows.size + place, left, vector, values);
    read_chunk(add + i * rows.size + place, left, vector, added);
#pragma unroll
    for (int e = 0; e < kChunkSize<T>; e++)
      values[e] = from_float<T>(to_float(values[e]) + to_float(added[e]));
    write_chunk(out + row * rows.size + place, left, vector, values);
  });
}

struct Shape {
  dim3 blocks, threads;
};

Shape shape_for(const ListedRows& rows, int chunk, const Launch& on) {
  const int64_t chunks = ceil_div(rows.size, chunk);
  unsigned across = 1;
  while (across < kThreads && across < chunks) across *= 2;
  const unsigned down = kThreads / across;
  const unsigned along = blocks_for(on, ceil_div(chunks, across), 1);
  const int64_t wanted = ceil_div(int64_t{on.multiprocessors} * 8, along);
  const int64_t most = ceil_div(rows.listed, down);
  constexpr int64_t kGridLimit = 65535;
  const int64_t blocks = min_of(min_of(wanted, most), kGridLimit);
  return {dim3(along, unsigned(blocks < 1 ? 1 : blocks)), dim3(across, down)};
}

}  // namespace

cudaError_t launch_gather_rows(Type type, const ListedRows& rows, const void* from, void* to,
                               const Launch& on) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t bytes = rows.size * int64_t{sizeof(T)};
    const auto shape = shape_for(rows, kChunkSize<T>, on);
    return launch(gather_rows_kernel<T>, on, shape.blocks, shape.threads, 0, rows,
                  static_cast<const T*>(from), static_cast<T*>(to),
                  in_chunks(from, bytes) && in_chunks(to, bytes));
  });
}

cudaError_t launch_add_rows(Type type, const ListedRows& rows, const void* add, void* out,
                            const Launch& on) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t bytes = rows.size * int64_t{sizeof(T)};
    const auto shape = shape_for(rows, kChunkSize<T>, on);
    return launch(add_rows_kernel<T>, on, shape.blocks, shape.threads, 0, rows,
                  static_cast<const T*>(add), static_cast<T*>(out),
                  in_chunks(add, bytes) && in_chunks(out, bytes));
  });
}

}  // namespace laud::cuda
