// Picks the widest instruction set that this CPU has: amx, or what LAUD_MM_ISA asks for of
// avx512_bf16, avx512, avx2 and baseline.
#include <cstdlib>
#include <cstring>

#define LAUD_ISA baseline
#define LAUD_VECTOR_BYTES 16
#define LAUD_PANEL_VECTORS 2
#include "row_gemm_impl.h"

namespace laud {
#if defined(__x86_64__)
namespace avx512 {
extern const RowGemmKernels<float> floats;
extern const RowGemmKernels<double> doubles;
}  // namespace avx512
namespace avx512_bf16 {
extern const RowGemmKernels<Bfloat16> bfloats;
}  // namespace avx512_bf16
namespace amx {
bool usable();
RowGemmKernels<Bfloat16> bfloats();
}  // namespace amx
namespace avx2 {
extern const RowGemmKernels<float> floats;
extern const RowGemmKernels<double> doubles;
}  // namespace avx2
#endif

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

Isa choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("LAUD_MM_ISA");
  const bool narrow = wanted && !std::strcmp(wanted, "baseline");
  const bool medium = wanted && !std::strcmp(wanted, "avx2");
  const bool wide = wanted && !std::strcmp(wanted, "avx512");
  const bool vectors = wanted && !std::strcmp(wanted, "avx512_bf16");
  if (!narrow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (medium || !__builtin_cpu_supports("avx512f")) return Isa::kAvx2;
    const bool dots = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
    if (wide || !dots) return Isa::kAvx512;
    return !vectors && amx::usable() ? Isa::kAmx : Isa::kAvx512Bf16;
  }
#endif
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace

#if defined(__x86_64__)
#define LAUD_KERNELS(T, name)                          \
  template <>                                          \
  const RowGemmKernels<T>& row_gemm<T>() {             \
    switch (isa()) {                                   \
      case Isa::kAmx:                                  \
      case Isa::kAvx512Bf16:                           \
      case Isa::kAvx512: return avx512::name;          \
      case Isa::kAvx2: return avx2::name;              \
      default: return baseline::name;                  \
    }                                                  \
  }
#else
#define LAUD_KERNELS(T, name) \
  template <>                 \
  const RowGemmKernels<T>& row_gemm<T>() { return baseline::name; }
#endif
LAUD_KERNELS(float, floats)
LAUD_KERNELS(double, doubles)

bool has_bfloat16() { return isa() >= Isa::kAvx512Bf16; }

template <>
const RowGemmKernels<Bfloat16>& row_gemm<Bfloat16>() {
#if defined(__x86_64__)
  static const RowGemmKernels<Bfloat16> tiles = amx::bfloats();
  return isa() == Isa::kAmx ? tiles : avx512_bf16::bfloats;
#else
  static const RowGemmKernels<Bfloat16> none = {};
  return none;
#endif
}

const char* row_gemm_isa() {
  const char* names[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(isa())];
}

}  // namespace laud
