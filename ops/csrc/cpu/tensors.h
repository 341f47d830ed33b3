// Tensors as the CPU kernels take them.
#pragma once
#include <ATen/Functions.h>

#include "../common/calls.h"
#include "packing.h"

namespace laud {

// float16 and bfloat16 compute in float32.
inline at::ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline PackedLayout layout_of(const Tensor& weight, int64_t groups, int64_t vector) {
  return PackedLayout::of(weight.size(2) * weight.size(3), weight.size(1) * groups,
                          weight.size(0), groups, vector);
}

template <typename T>
Tensor pack_as(const Tensor& weight, const Tensor& bias, int64_t groups) {
  const int64_t vector = row_gemm<T>().vector;
  const auto layout = layout_of(weight, groups, vector);
  const auto options = weight.options().dtype(c10::CppTypeToScalarType<T>::value);
  Tensor packed = at::zeros({layout.size(vector)}, options);
  const Tensor rows = weight.to(options).permute({0, 2, 3, 1}).contiguous();
  const Tensor shifts = bias.to(options).contiguous();
  pack(layout, rows.template const_data_ptr<T>(), shifts.template const_data_ptr<T>(),
       packed.template mutable_data_ptr<T>());
  return packed;
}

// A convolution's weights in the form that its rows need.
template <typename T>
struct Weights {
  PackedLayout layout;
  Tensor matrix, bias;  // matrix: packed, or (taps * inputs, outputs) where columns are picked

  Weights(const Tensor& weight, const Tensor& bias_, int64_t groups, bool slices,
          const OptionalTensor& prepared)
      : layout(layout_of(weight, groups, row_gemm<T>().vector)) {
    const auto type = c10::CppTypeToScalarType<T>::value;
    const int64_t size = slices ? layout.taps * layout.inputs * layout.outputs
                                : layout.size(row_gemm<T>().vector);
    bias = bias_.to(type).contiguous();
    if (prepared) {
      matrix = *prepared;
      TORCH_CHECK(matrix.scalar_type() == type && matrix.is_contiguous() && matrix.is_cpu() &&
                      matrix.numel() == size,
                  "packed must hold ", size, " contiguous values of ", type, " made by ",
                  slices ? "slice_ready" : "pack_conv", " on this machine, got ", matrix.numel(),
                  " of ", matrix.scalar_type());
    } else if (slices) {
      matrix = weight.to(type).permute({2, 3, 1, 0}).contiguous();
    } else {
      matrix = pack_as<T>(weight, bias, groups);
    }
  }
  const T* data() const { return matrix.template const_data_ptr<T>(); }
};

}  // namespace laud
