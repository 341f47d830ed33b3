#include "device.cuh"
#include "row_gemm.h"

namespace laud::cuda {

cudaError_t launch_row_gemm(const RowGemm& gemm, const Launch& on) {
  switch (gemm.type) {
    case Type::kHalf: return launch_row_gemm_as<__half>(gemm, on);
    case Type::kBFloat16: return launch_row_gemm_as<__nv_bfloat16>(gemm, on);
    default: return launch_row_gemm_as<float>(gemm, on);
  }
}

}  // namespace laud::cuda
