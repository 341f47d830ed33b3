// Tensors as the CPU kernels take them.
#pragma once
#include <ATen/Functions.h>

#include <type_traits>

#include "../common/calls.h"
#include "winograd.h"

namespace laud {

// float16 and bfloat16 compute in float32.
inline at::ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Whether a convolution multiplies bfloat16 as it is; its maps then stay as narrow as they are.
inline bool multiplies_bfloat16(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && has_bfloat16();
}

template <typename T>
constexpr at::ScalarType scalar_type() {
  if constexpr (std::is_same_v<T, Bfloat16>) return at::kBFloat16;
  else return c10::CppTypeToScalarType<T>::value;
}

template <typename T>
const T* data_of(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }
template <typename T>
T* data_to(Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }

template <typename T>
PackedLayout layout_of(const Tensor& weight, int64_t groups) {
  return PackedLayout::of(weight.size(2) * weight.size(3), weight.size(1) * groups,
                          weight.size(0), groups, row_gemm<T>().vector, RowTypes<T>::step);
}

template <typename T>
Tensor pack_as(const Tensor& weight, const Tensor& bias, int64_t groups) {
  using Sum = typename RowTypes<T>::Sum;
  const auto layout = layout_of<T>(weight, groups);
  const auto options = weight.options().dtype(scalar_type<T>());
  Tensor packed = at::zeros({layout.size(row_gemm<T>().vector)}, options);
  const Tensor rows = weight.to(options).permute({0, 2, 3, 1}).contiguous();
  const Tensor shifts = bias.to(scalar_type<Sum>()).contiguous();
  pack(layout, data_of<T>(rows), data_of<Sum>(shifts), data_to<T>(packed));
  return packed;
}

template <typename T>
Tensor pack_winograd_as(const Tensor& weight, const Tensor& bias) {
  const int64_t vector = row_gemm<T>().vector;
  const auto layout = PackedLayout::of(1, weight.size(1), weight.size(0), 1, vector);
  const auto options = weight.options().dtype(c10::CppTypeToScalarType<T>::value);
  Tensor packed = at::zeros({winograd_size(layout, vector)}, options);
  const Tensor filters = weight.to(options).contiguous(), shifts = bias.to(options).contiguous();
  Tensor transformed = at::empty({kTaps, layout.outputs, layout.inputs}, filters.options());
  winograd_weights(filters.template const_data_ptr<T>(), layout.outputs * layout.inputs,
                   transformed.template mutable_data_ptr<T>());
  pack_winograd(layout, transformed.template const_data_ptr<T>(),
                shifts.template const_data_ptr<T>(), packed.template mutable_data_ptr<T>());
  return packed;
}

inline void check_packed(const Tensor& packed, at::ScalarType type, int64_t size,
                         const char* maker) {
  TORCH_CHECK(packed.scalar_type() == type && packed.is_contiguous() && packed.is_cpu() &&
                  packed.numel() == size,
              "packed must hold ", size, " contiguous values of ", type, " made by ", maker,
              " on this machine, got ", packed.numel(), " of ", packed.scalar_type());
}

// (taps * inputs, outputs), of pairs of inputs where those are multiplied at once.
template <typename T>
Tensor slice_ready_as(const Tensor& weight) {
  const Tensor rows = weight.to(scalar_type<T>()).permute({2, 3, 1, 0});
  constexpr int64_t step = RowTypes<T>::step;
  if constexpr (step == 1) return rows.contiguous();
  const int64_t taps = rows.size(0) * rows.size(1), outputs = rows.size(3);
  return at::constant_pad_nd(rows, {0, 0, 0, rows.size(2) % step})
      .reshape({taps, -1, step, outputs}).transpose(2, 3).contiguous();
}

// A convolution's weights in the form that its rows need.
template <typename T>
struct Weights {
  PackedLayout layout;
  Tensor matrix, bias;  // matrix: packed, or where columns are picked as `run_sliced` takes it

  Weights(const Tensor& weight, const Tensor& bias_, int64_t groups, bool slices,
          const OptionalTensor& prepared)
      : layout(layout_of<T>(weight, groups)) {
    const auto type = scalar_type<T>();
    const int64_t size = slices ? layout.taps * layout.padded(layout.inputs) * layout.outputs
                                : layout.size(row_gemm<T>().vector);
    bias = bias_.to(scalar_type<typename RowTypes<T>::Sum>()).contiguous();
    if (prepared) {
      matrix = *prepared;
      check_packed(matrix, type, size, slices ? "slice_ready" : "pack_conv");
    } else if (slices) {
      matrix = slice_ready_as<T>(weight);
    } else {
      matrix = pack_as<T>(weight, bias, groups);
    }
  }
  const T* data() const { return data_of<T>(matrix); }
};

}  // namespace laud
