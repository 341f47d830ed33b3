// Leave to use the tiles of AMX. For x86-64 Linux.
#pragma once
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace laud {
namespace {

constexpr int kAmxBfloat16 = 22, kAmxInt8 = 25;  // bits of cpuid's leaf 7

// Whether the CPU has these products; asks the system for the tiles' registers, once for the
// process.
inline bool tiles_allowed(int products) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr int kTiles = 24;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d >> kTiles & 1) && (d >> products & 1) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace
}  // namespace laud
