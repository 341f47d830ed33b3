// The first convolution of a quantised net, from images in float, with its ReLU and max pool
// (CPU).
//
// Images are quantised with a zero point, which also pads them. Windows are copied side by
// side, so that a k x k convolution of C channels is a product of rows of k * k * C inputs,
// padded to whole tiles. Bands of output rows stay in the cache between convolution and pool.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/calls.h"
#include "int8_gemm.h"

namespace laud {

Tensor pack_int8(const Tensor& weight, const Tensor& bias, const Tensor& multiplier);

namespace {

constexpr int64_t kBandRows = 16, kTile = 64, kCopy = 32;

struct Int8Stem {
  MapSize in, conv, out;
  int64_t channels, kernel, stride, outputs;
  bool pool;
  float inverse;
  int32_t zero;

  int64_t padding() const { return kernel / 2; }
  int64_t pitch() const { return (in.width + 2 * padding()) * channels; }
  int64_t inputs() const { return ceil_div(kernel * kernel * channels, kTile) * kTile; }
  // Rows of the convolution that output rows [first, last) need.
  int64_t conv_first(int64_t first) const {
    return pool ? std::max(2 * first - 1, int64_t(0)) : first;
  }
  int64_t conv_last(int64_t last) const {
    return pool ? std::min(2 * last, conv.height) : last;
  }
};

// What a thread works on; buffers have room for copies of kCopy bytes at their ends.
class Band {
 public:
  Band(const Tensor& x, const Int8Stem& s, const int8_t* packed)
      : x_(x), s_(s), plane_(s.in.width),
        memory_(s.conv.width * s.inputs() + kCopy + kTile, 0), windows_(aligned(memory_.data())),
        lines_(s.pool ? 4 * width() : 0), tallest_(width()), in_(s.conv.width), out_(s.conv.width) {
    for (int64_t i = 0; i < s.conv.width; i++) in_[i] = windows_ + i * s.inputs();
    g_.layout = {1, s.inputs(), s.outputs};
    g_.rows = s.conv.width;
    g_.in = in_.data();
    g_.out = out_.data();
    g_.packed = packed;
    g_.last_panel = g_.layout.panels();
  }

  // Output rows [first, last) of a sample.
  void run(int64_t sample, int64_t first, int64_t last, uint8_t* to) {
    const int64_t start = s_.conv_first(first);
    quantize(sample, start, s_.conv_last(last));
    int64_t next = start;  // convolution rows before it are there, the latest four of them
    for (int64_t row = first; row < last; row++, to += s_.out.width * s_.outputs) {
      for (; next < s_.conv_last(row + 1); next++)
        convolve(next - start, s_.pool ? line(next) : to);
      if (s_.pool) pool(s_.conv_first(row), s_.conv_last(row + 1), to);
    }
  }

 private:
  // Tiles that cross lines of the cache are slow to load.
  static uint8_t* aligned(uint8_t* p) {
    return p + (kTile - reinterpret_cast<uintptr_t>(p) % kTile) % kTile;
  }
  int64_t width() const { return s_.conv.width * s_.outputs; }
  uint8_t* line(int64_t row) { return lines_.data() + row % 4 * width(); }

  // Input rows that convolution rows [first, last) read.
  void quantize(int64_t sample, int64_t first, int64_t last) {
    const auto& kernels = int8_kernels();
    const int64_t count = (last - first - 1) * s_.stride + s_.kernel;
    const auto strides = x_.strides();
    padded_.assign(count * s_.pitch() + kCopy, static_cast<uint8_t>(s_.zero));
    for (int64_t r = 0; r < count; r++) {
      const int64_t y = first * s_.stride - s_.padding() + r;
      if (y < 0 || y >= s_.in.height) continue;
      const float* from = x_.const_data_ptr<float>() + sample * strides[0] + y * strides[2];
      uint8_t* row = padded_.data() + r * s_.pitch() + s_.padding() * s_.channels;
      if (strides[1] == 1) {
        kernels.quantize(from, s_.inverse, s_.zero, s_.in.width * s_.channels, row);
        continue;
      }
      for (int64_t c = 0; c < s_.channels; c++) {
        kernels.quantize(from + c * strides[1], s_.inverse, s_.zero, s_.in.width, plane_.data());
        for (int64_t i = 0; i < s_.in.width; i++) row[i * s_.channels + c] = plane_[i];
      }
    }
  }

  // One row of the convolution, counted from the first that was quantised for.
  void convolve(int64_t row, uint8_t* to) {
    const uint8_t* from = padded_.data() + row * s_.stride * s_.pitch();
    const int64_t size = s_.kernel * s_.channels;
    for (int64_t i = 0; i < s_.conv.width; i++) {
      uint8_t* window = windows_ + i * s_.inputs();
      const uint8_t* corner = from + i * s_.stride * s_.channels;
      // What a copy writes beyond its end is written again, or has weights of 0.
      for (int64_t t = 0; t < s_.kernel; t++)
        for (int64_t b = 0; b < size; b += kCopy)
          std::memcpy(window + t * size + b, corner + t * s_.pitch() + b, kCopy);
      out_[i] = to + i * s_.outputs;
    }
    int8_kernels().run(g_);
  }

  static void maximum(const uint8_t* row, int64_t size, uint8_t* to) {
    for (int64_t i = 0; i < size; i++) to[i] = std::max(to[i], row[i]);
  }

  void pool(int64_t first, int64_t last, uint8_t* to) {
    std::copy_n(line(first), width(), tallest_.data());
    for (int64_t r = first + 1; r < last; r++) maximum(line(r), width(), tallest_.data());
    for (int64_t i = 0; i < s_.out.width; i++, to += s_.outputs) {
      const int64_t left = std::max(2 * i - 1, int64_t(0));
      const int64_t right = std::min(2 * i + 2, s_.conv.width);
      std::copy_n(tallest_.data() + left * s_.outputs, s_.outputs, to);
      for (int64_t c = left + 1; c < right; c++)
        maximum(tallest_.data() + c * s_.outputs, s_.outputs, to);
    }
  }

  const Tensor& x_;
  const Int8Stem& s_;
  std::vector<uint8_t> padded_, plane_, memory_;
  uint8_t* windows_;
  std::vector<uint8_t> lines_, tallest_;
  std::vector<const uint8_t*> in_;
  std::vector<uint8_t*> out_;
  Int8Gemm g_;
};

Tensor stem_int8(const Tensor& x, const Tensor& weight, const Tensor& bias,
                 const Tensor& multiplier, double scale, int64_t zero, int64_t stride, bool pool,
                 const OptionalTensor& packed) {
  check_floating("x", x);
  TORCH_CHECK(x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0,
              "x must be (N, C, H, W) with channels and positions, got shape ", x.sizes());
  check_positive("stride", stride);
  TORCH_CHECK(scale > 0, "scale must be above 0, got ", scale);
  TORCH_CHECK(zero >= 0 && zero <= 255, "zero must be from 0 to 255, got ", zero);
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) &&
                  weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1,
              "weight must be (out, ", x.size(1), ", k, k) with an odd k, got shape ",
              weight.sizes());
  check_shape("bias", bias, {weight.size(0)});
  check_shape("multiplier", multiplier, {weight.size(0)});
  const MapSize in{x.size(0), x.size(2), x.size(3)}, conv = in.strided(stride);
  const Int8Stem shape{in, conv, pool ? conv.strided(2) : conv, x.size(1), weight.size(2), stride,
                       weight.size(0), pool, static_cast<float>(1 / scale),
                       static_cast<int32_t>(zero)};
  const Int8Layout layout{1, shape.inputs(), shape.outputs};
  Tensor prepared;
  if (packed) {
    prepared = *packed;
    TORCH_CHECK(prepared.scalar_type() == at::kChar && prepared.is_contiguous() &&
                    prepared.numel() == layout.size(),
                "packed must hold ", layout.size(), " contiguous values of int8 made by "
                "pack_stem_int8, got ", prepared.numel(), " of ", prepared.scalar_type());
  } else {
    const Tensor rows = weight.permute({0, 2, 3, 1}).reshape({shape.outputs, -1});
    prepared = pack_int8(at::constant_pad_nd(rows, {0, shape.inputs() - rows.size(1)})
                             .reshape({shape.outputs, -1, 1, 1}), bias, multiplier);
  }
  Tensor from = x.to(at::kFloat);
  const bool last = from.stride(1) == 1 && from.stride(3) == shape.channels;
  if (!last && from.stride(3) != 1) from = from.contiguous();
  Tensor y = empty_map(x.new_empty({0}, at::kByte), shape.out, shape.outputs);
  uint8_t* const to = y.mutable_data_ptr<uint8_t>();
  const int64_t bands = ceil_div(shape.out.height, kBandRows);
  at::parallel_for(0, in.samples * bands, 1, [&](int64_t begin, int64_t end) {
    Band band(from, shape, prepared.const_data_ptr<int8_t>());
    for (int64_t task = begin; task < end; task++) {
      const int64_t sample = task / bands, first = task % bands * kBandRows;
      band.run(sample, first, std::min(first + kBandRows, shape.out.height),
               to + shape.out.row(sample, first, 0) * shape.outputs);
    }
  });
  return y;
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) { m.impl("stem_int8", stem_int8); }

}  // namespace
}  // namespace laud
