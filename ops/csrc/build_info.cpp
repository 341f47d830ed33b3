// What this extension was built for; asked before anything else is used.
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/int8_gemm.h"
#include "cpu/row_gemm.h"

TORCH_LIBRARY(laud_mm_build, m) {
  m.def("torch_version() -> str", [] { return std::string(TORCH_VERSION); });
  m.def("cpu_isa() -> str", [] { return std::string(laud::row_gemm_isa()); });
  m.def("int8_isa() -> str", [] { return std::string(laud::int8_kernels().isa); });
#ifdef LAUD_WITH_CUDA
  m.def("cuda() -> bool", [] { return true; });
#else
  m.def("cuda() -> bool", [] { return false; });
#endif
}
