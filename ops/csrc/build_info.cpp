// What this extension was built for; asked before anything else is used.
#include <torch/library.h>
#include <torch/version.h>

#include "common/gemm_tiles.h"
#include "common/precision.h"
#include "cpu/int8_gemm.h"
#include "cpu/row_gemm.h"

TORCH_LIBRARY(laud_mm_build, m) {
  m.def("torch_version() -> str", [] { return std::string(TORCH_VERSION); });
  m.def("cpu_isa() -> str", [] { return std::string(laud::row_gemm_isa()); });
  m.def("int8_isa() -> str", [] { return std::string(laud::int8_kernels().isa); });
  // Rows and columns of the tile of a product on a GPU, see `tile_for`.
  m.def("tile(int rows, int columns, int groups, int multiprocessors, bool halves) -> (int, int)",
        [](int64_t rows, int64_t columns, int64_t groups, int64_t multiprocessors, bool halves) {
          const auto tile = laud::tile_for(rows, columns, groups, multiprocessors, halves);
          return std::tuple<int64_t, int64_t>(tile.rows, tile.columns);
        });
  m.def("allows_tf32() -> bool", [] { return laud::allows_tf32(); });
#ifdef LAUD_WITH_CUDA
  m.def("cuda() -> bool", [] { return true; });
#else
  m.def("cuda() -> bool", [] { return false; });
#endif
}
