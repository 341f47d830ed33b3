#include "row_gemm.cuh"

namespace laud::cuda {

template cudaError_t launch_row_gemm_as<float>(RowGemm, const Launch&);

}  // namespace laud::cuda
