#include "row_gemm.cuh"

namespace laud::cuda {

template cudaError_t launch_row_gemm_as<__nv_bfloat16>(RowGemm, const Launch&);

}  // namespace laud::cuda
