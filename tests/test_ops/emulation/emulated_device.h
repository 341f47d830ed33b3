// Runs CUDA kernels on a CPU: included before each .cu file, in place of CUDA's headers.
//
// Blocks run one after another, and the threads of a block are fibers that take turns where
// they wait for each other, both in ascending or descending order. Shared memory is static.
// Copies to shared memory happen as late as they may, when they are waited for, so that a
// missing wait or barrier shows. Rows of ldmatrix that share a bank are counted.
#pragma once
#define LAUD_EMULATED_DEVICE
#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "../../../ops/csrc/cuda/launch.h"

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct __half {
  uint16_t bits;
};
inline float __half2float(__half v) {
  _Float16 f;
  memcpy(&f, &v, sizeof(f));
  return float(f);
}
inline __half __float2half_rn(float v) {
  const _Float16 f = _Float16(v);
  __half to;
  memcpy(&to, &f, sizeof(f));
  return to;
}

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __uint_as_float(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(v));
  return bits;
}
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  if (std::isnan(v)) return {0x7fff};
  const uint32_t bits = __float_as_uint(v);
  return {uint16_t((uint64_t{bits} + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulated device: %s\n", what);
  abort();
}

// 32 threads that exchange values; two sets, since nobody can be two exchanges ahead.
struct Warp {
  int arrived = 0, generation = 0;
  uint32_t slots[2][32][8];
};

struct Copy {
  char* to;
  const void* from;
  int size, bytes;
};

struct Thread {
  dim3 index;
  Warp* warp;
  int lane;
  ucontext_t start;
  jmp_buf at;
  bool started = false, done = false;
  std::unique_ptr<char[]> stack;
  std::vector<std::vector<Copy>> groups{1};  // the last one is not committed yet
};

inline bool descending = false;
inline int64_t bank_conflicts = 0, loads = 0;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Thread* self = nullptr;
inline jmp_buf scheduler;
inline const std::function<void()>* body = nullptr;
inline int barrier_arrived = 0, barrier_generation = 0;
inline std::vector<uint4> shared;

inline void yield() {
  if (!_setjmp(self->at)) _longjmp(scheduler, 1);
  threadIdx = self->index;
}

inline void run_thread() {
  threadIdx = self->index;
  (*body)();
  self->done = true;
  _longjmp(scheduler, 1);
}

inline void resume(Thread& thread) {
  self = &thread;
  if (_setjmp(scheduler)) return;
  if (thread.started) _longjmp(thread.at, 1);
  thread.started = true;
  setcontext(&thread.start);
}

inline void run_block(unsigned count, size_t shared_bytes) {
  constexpr size_t kStack = 256 << 10;
  threads = std::vector<Thread>(count);
  warps = std::vector<Warp>((count + 31) / 32);
  // Shared memory holds anything at first: here NaNs.
  shared.assign(shared_bytes / 16 + 8, uint4{~0u, ~0u, ~0u, ~0u});
  barrier_arrived = 0;
  for (unsigned t = 0; t < count; t++) {
    Thread& thread = threads[t];
    thread.index = dim3(t % blockDim.x, t / blockDim.x);
    thread.warp = &warps[t / 32];
    thread.lane = int(t % 32);
    thread.stack.reset(new char[kStack]);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get();
    thread.start.uc_stack.ss_size = kStack;
    makecontext(&thread.start, run_thread, 0);
  }
  for (unsigned left = count; left > 0;)
    for (unsigned i = 0; i < count; i++) {
      Thread& thread = threads[descending ? count - 1 - i : i];
      if (thread.done) continue;
      resume(thread);
      if (thread.done) left--;
    }
}

// Exchange 8 words between the threads of a warp.
inline const uint32_t (*exchange(const uint32_t (&own)[8]))[8] {
  Warp& warp = *self->warp;
  const int generation = warp.generation;
  auto* slots = warp.slots[generation % 2];
  memcpy(slots[self->lane], own, sizeof(own));
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    warp.generation++;
  } else {
    while (warp.generation == generation) yield();
  }
  return slots;
}

inline int32_t shuffle(int32_t value, int from) {
  const auto* slots = exchange({uint32_t(value)});
  return from >= 0 && from < 32 ? int32_t(slots[from][0]) : value;
}

template <typename T>
T as(const uint32_t* words, int k) {
  T v;
  memcpy(&v, reinterpret_cast<const char*>(words) + k * sizeof(T), sizeof(v));
  return v;
}

}  // namespace emulation

inline void __syncthreads() {
  using namespace emulation;
  const int generation = barrier_generation;
  if (++barrier_arrived == int(threads.size())) {
    barrier_arrived = 0;
    barrier_generation++;
  } else {
    while (barrier_generation == generation) yield();
  }
}
template <typename T>
T __ldg(const T* at) {
  emulation::loads++;
  return *at;
}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int32_t __shfl_up_sync(uint32_t, int32_t value, int by) {
  return emulation::shuffle(value, emulation::self->lane - by);
}
inline float __shfl_xor_sync(uint32_t, float value, int by) {
  const int32_t bits = emulation::shuffle(int32_t(__float_as_uint(value)),
                                          emulation::self->lane ^ by);
  return __uint_as_float(uint32_t(bits));
}

// What instructions.cuh holds, by the definitions of the PTX manual.
namespace laud::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& on, dim3 blocks, dim3 threads,
                   size_t shared, const Arguments&... arguments) {
  const uint64_t count = uint64_t{blocks.x} * blocks.y;
  if (shared > size_t(on.shared_bytes) || blocks.x > 0x7fffffffu || blocks.y > 65535 ||
      count == 0 || threads.x * threads.y > 1024 || threads.x * threads.y == 0)
    return cudaErrorInvalidConfiguration;
  const std::function<void()> body = [&] { kernel(arguments...); };
  emulation::body = &body;
  gridDim = blocks;
  blockDim = threads;
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t at = emulation::descending ? count - 1 - i : i;
    blockIdx = dim3(unsigned(at % blocks.x), unsigned(at / blocks.x));
    emulation::run_block(threads.x * threads.y, shared);
  }
  return cudaSuccess;
}

inline char* dynamic_shared() { return reinterpret_cast<char*>(emulation::shared.data()); }

template <int kSize>
void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % kSize || reinterpret_cast<uintptr_t>(from) % kSize)
    emulation::fail("cp.async of an unaligned address");
  emulation::self->groups.back().push_back({static_cast<char*>(to), from, kSize, bytes});
}
inline void copy_commit() { emulation::self->groups.emplace_back(); }
template <int kPending>
void copy_wait() {
  auto& groups = emulation::self->groups;
  while (groups.size() > kPending + 1) {
    for (const auto& copy : groups.front()) {
      memset(copy.to, 0, size_t(copy.size));
      memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

// Lane l gets word l % 4 of row l / 4 of each matrix.
inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  if (address % 16) emulation::fail("ldmatrix of an unaligned address");
  const auto* rows = emulation::exchange({uint32_t(address), uint32_t(address >> 32)});
  const int lane = emulation::self->lane;
  for (int m = 0; m < 4; m++) {
    uint32_t banks = 0;
    for (int r = 0; r < 8; r++) {
      const auto* at = rows[m * 8 + r];
      banks |= 1u << (at[0] / 16 % 8);
      if (r == lane / 4)
        memcpy(&to[m], reinterpret_cast<const char*>(uintptr_t{at[0]} | uintptr_t{at[1]} << 32) +
                           lane % 4 * 4, 4);
    }
    if (lane == 0) emulation::bank_conflicts += 8 - __popc(banks);
  }
}

inline float element(__half, const uint32_t* words, int k) {
  return __half2float(emulation::as<__half>(words, k));
}
inline float element(__nv_bfloat16, const uint32_t* words, int k) {
  return __bfloat162float(emulation::as<__nv_bfloat16>(words, k));
}
inline float element(float, const uint32_t* words, int k) {
  // The matrix units read 19 bits.
  return __uint_as_float(words[k] & 0xffffe000u);
}

// m16n8k16, or m16n8k8 of TF32: with w = 32-bit words of a row of 4 lanes, register i of a
// holds row g + 8 (i % 2) and words 4 (i / 2) + t, that of b column g and words 4 i + t,
// for lane 4 g + t; sums are of rows g and g + 8, columns 2 t and 2 t + 1.
template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  const auto* lanes = emulation::exchange({a[0], a[1], a[2], a[3], b[0], b[1]});
  const int g = emulation::self->lane / 4, t = emulation::self->lane % 4;
  constexpr int kPerWord = 4 / int(sizeof(T));
  for (int i = 0; i < 4; i++) {
    const int row = i / 2, column = 2 * t + i % 2;  // row g + 8 * row
    double total = 0;
    for (int word = 0; word < 8; word++)
      for (int e = 0; e < kPerWord; e++)
        total += double(element(type, &lanes[g * 4 + word % 4][row + word / 4 * 2], e)) *
                 element(type, &lanes[column * 4 + word % 4][4 + word / 4], e);
    sum[i] += float(total);
  }
}

inline uint32_t round_tf32(float v) {
  return std::isfinite(v) ? (__float_as_uint(v) + 0x1000u) & 0xffffe000u : __float_as_uint(v);
}

}  // namespace laud::cuda
