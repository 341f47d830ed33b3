// Listing units: flags become ascending indices and a count, without host synchronisation.
//
// A block of compact_kernel lists 16 KB of flags, 16 of them a thread. Where these indices
// go depends on the flags before them. Of a short row a block counts those itself, which is
// cheaper than a second launch; of a long one a launch before it has counted them by blocks.
#include "device.cuh"
#include "units.h"

namespace laud::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kFlags = 16;
constexpr int kBlockFlags = kThreads * kFlags;

// Bit 7 of each byte that is not zero.
__device__ uint32_t on_bytes(uint32_t word) {
  return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u;
}

// One bit for each of 16 flags; `vector` where they are all there and aligned.
__device__ uint32_t load_flags(const uint8_t* flags, int64_t left, bool vector) {
  uint32_t bits = 0;
  if (vector && left >= kFlags) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(flags));
    const uint32_t each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // Bits 7, 15, 23 and 31 are brought together by a product.
      const uint32_t on = on_bytes(each[i]) >> 7;
      bits |= ((on * 0x10204080u) >> 28) << (4 * i);
    }
    return bits;
  }
  for (int i = 0; i < kFlags && i < left; i++) bits |= uint32_t(flags[i] != 0) << i;
  return bits;
}

// The sum of `value` over the threads before this one; `total` over all.
__device__ int32_t sum_before(int32_t value, int32_t& total) {
  __shared__ int32_t warps[kWarps];
  const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t sum = value;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const int32_t below = __shfl_up_sync(0xffffffffu, sum, by);
    if (lane >= by) sum += below;
  }
  __syncthreads();  // the last call's sums are in use until here
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  int32_t before = 0;
  total = 0;
  for (int w = 0; w < kWarps; w++) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before + sum - value;
}

// The bits of this thread's flags in a block of a row.
__device__ uint32_t own_flags(const uint8_t* row, int64_t units, int64_t first, bool vector) {
  const int64_t at = first + threadIdx.x * kFlags;
  return at < units ? load_flags(row + at, units - at, vector) : 0;
}

// totals (rows, row_blocks): how many flags of each block are on.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint8_t* flags, int64_t rows, int64_t units, int64_t row_blocks,
                 bool vector, int32_t* totals) {
  for (int64_t block = blockIdx.x; block < rows * row_blocks; block += gridDim.x) {
    const int64_t row = block / row_blocks, first = block % row_blocks * kBlockFlags;
    int32_t total;
    sum_before(__popc(own_flags(flags + row * units, units, first, vector)), total);
    if (threadIdx.x == 0) totals[block] = total;
  }
}

// `totals` of count_kernel, or null: then blocks count the flags before theirs.
__global__ void __launch_bounds__(kThreads)
    compact_kernel(const uint8_t* flags, int64_t rows, int64_t units, int64_t row_blocks,
                   bool vector, const int32_t* totals, int32_t* index, int32_t* count) {
  for (int64_t block = blockIdx.x; block < rows * row_blocks; block += gridDim.x) {
    const int64_t row = block / row_blocks, own = block % row_blocks, first = own * kBlockFlags;
    const uint8_t* from = flags + row * units;
    int32_t before = 0, total = 0;
    uint32_t bits = 0;
    if (totals)
      for (int64_t b = threadIdx.x; b < own; b += kThreads) before += totals[block - own + b];
    for (int64_t b = totals ? own : 0; b <= own; b++) {
      before += __popc(bits);
      bits = own_flags(from, units, b * kBlockFlags, vector);
    }
    sum_before(before, total);
    const int32_t offset = total;
    int32_t* to = index + row * units + offset + sum_before(__popc(bits), total);
    for (const int64_t at = first + threadIdx.x * kFlags; bits; bits &= bits - 1)
      *to++ = int32_t(at) + __ffs(int(bits)) - 1;
    if (threadIdx.x == 0 && first + kBlockFlags >= units) count[row] = offset + total;
  }
}

int64_t row_blocks_of(int64_t units) { return units > 0 ? ceil_div(units, kBlockFlags) : 1; }

constexpr int kHaloThreads = 256, kHaloFlags = 4096;

// The first listed patch that is not before `patch`.
__device__ int32_t lower_bound(const int32_t* index, int32_t listed, int64_t patch) {
  int32_t low = 0, high = listed;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (index[middle] < patch) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A block owns `lines` lines of a sample, at most kHaloFlags positions or one line. It looks
// up the listed patches that read them, so flags need not be cleared before.
__global__ void __launch_bounds__(kHaloThreads)
    halo_flags_kernel(const int32_t* index, const int32_t* count, int32_t units, PatchGrid grid,
                      MapSize in, Window window, int64_t lines, uint8_t* flags) {
  const int32_t counted = *count;
  const int32_t listed = counted < 0 ? 0 : counted < units ? counted : units;
  const int64_t parts = ceil_div(in.height, lines), columns = grid.columns();
  for (int64_t block = blockIdx.x; block < in.samples * parts; block += gridDim.x) {
    const int64_t sample = block / parts, first = block % parts * lines;
    const int64_t last = min_of(first + lines, in.height);
    uint8_t* own = flags + in.row(sample, first, 0);
    for (int64_t i = threadIdx.x; i < (last - first) * in.width; i += kHaloThreads) own[i] = 0;
    __syncthreads();
    // Output lines whose windows may reach these, and the rows of patches they lie in.
    const int64_t low = first > window.dilation ? (first - window.dilation) / window.stride : 0;
    const int64_t high = min_of((last - 1 + window.dilation) / window.stride, grid.map.height - 1);
    const int64_t patches = sample * grid.rows();
    const int32_t begin =
        lower_bound(index, listed, (patches + low / grid.patch_height) * columns);
    const int32_t end =
        lower_bound(index, listed, (patches + high / grid.patch_height + 1) * columns);
    for (int32_t p = begin + threadIdx.x / 32; p < end; p += kHaloThreads / 32) {
      const int32_t listed_patch = index[p];
      if (listed_patch < 0 || listed_patch >= grid.patches()) continue;
      const Patch patch = grid.at(listed_patch);
      if (patch.first.sample != sample) continue;
      const int32_t top = int32_t(patch.first.y > low ? patch.first.y : low);
      const int32_t height = int32_t(min_of(patch.first.y + patch.height, high + 1)) - top;
      const int32_t width = int32_t(patch.width);
      for (int32_t i = threadIdx.x % 32; i < height * width * 9; i += 32) {
        const int32_t place = i / 9, tap = i % 9;
        const int64_t y = window.reads(top + place / width, tap / 3);
        const int64_t x = window.reads(patch.first.x + place % width, tap % 3);
        if (y >= first && y < last && x >= 0 && x < in.width)
          own[(y - first) * in.width + x] = 1;  // the same value from all threads
      }
    }
    __syncthreads();
  }
}

}  // namespace

int64_t compact_scratch(int64_t rows, int64_t units) {
  constexpr int64_t kShortRow = 8;  // blocks
  const int64_t row_blocks = row_blocks_of(units);
  return row_blocks > kShortRow ? rows * row_blocks : 0;
}

cudaError_t launch_compact(const uint8_t* flags, int64_t rows, int64_t units, int32_t* scratch,
                           int32_t* index, int32_t* count, const Launch& on) {
  const int64_t row_blocks = row_blocks_of(units);
  const bool vector = reinterpret_cast<uintptr_t>(flags) % kFlags == 0 &&
                      (rows == 1 || units % kFlags == 0);
  const dim3 blocks(blocks_for(on, rows * row_blocks, 2));
  int32_t* totals = compact_scratch(rows, units) > 0 ? scratch : nullptr;
  if (totals) {
    const auto error = launch(count_kernel, on, blocks, dim3(kThreads), 0, flags, rows, units,
                              row_blocks, vector, totals);
    if (error != cudaSuccess) return error;
  }
  return launch(compact_kernel, on, blocks, dim3(kThreads), 0, flags, rows, units, row_blocks,
                vector, totals, index, count);
}

cudaError_t launch_halo_flags(const int32_t* index, const int32_t* count, int64_t units,
                              const PatchGrid& grid, const MapSize& in, const Window& window,
                              uint8_t* flags, const Launch& on) {
  const int64_t lines = in.width >= kHaloFlags ? 1 : kHaloFlags / in.width;
  const int64_t blocks = in.samples * ceil_div(in.height, lines);
  return launch(halo_flags_kernel, on, dim3(blocks_for(on, blocks, 8)), dim3(kHaloThreads), 0,
                index, count, int32_t(units), grid, in, window, lines, flags);
}

}  // namespace laud::cuda
