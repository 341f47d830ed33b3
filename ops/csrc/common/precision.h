// What torch is asked to multiply float32 matrices in.
#pragma once
#include <ATen/Context.h>
#include <torch/version.h>

namespace laud {

// Whether torch's products of float32 matrices may be TF32 on a GPU.
inline bool allows_tf32() {
  const auto& context = at::globalContext();
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11)
  // The older query raises where `fp32_precision` says what `allow_tf32` does not.
  return context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
#else
  return context.allowTF32CuBLAS();
#endif
}

}  // namespace laud
