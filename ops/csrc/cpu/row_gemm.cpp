// Picks the widest instruction set that this CPU has; LAUD_MM_ISA (avx512, avx2 or
// baseline) asks for a narrower one.
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
namespace avx2 {
extern const RowGemmKernels<float> floats;
extern const RowGemmKernels<double> doubles;
}  // namespace avx2
#endif

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("LAUD_MM_ISA");
  const bool narrow = wanted && !std::strcmp(wanted, "baseline");
  const bool medium = wanted && !std::strcmp(wanted, "avx2");
  if (!narrow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return !medium && __builtin_cpu_supports("avx512f") ? Isa::kAvx512 : Isa::kAvx2;
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

const char* row_gemm_isa() {
  const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(isa())];
}

}  // namespace laud
