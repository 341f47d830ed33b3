// The first convolution of a net, on few channels, with its ReLU and max pool (CPU).
//
// A row of the window is contiguous in a channels-last image, so a k x k convolution of C
// channels has k taps of k * C inputs. Bands of output rows stay in the cache between
// convolution and pool.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "row_tasks.h"
#include "tensors.h"

namespace laud {
namespace {

constexpr int64_t kBandRows = 16;

struct StemShape {
  MapSize in, conv, out;
  int64_t channels, kernel, stride, outputs;
  bool pool;
  int64_t pixel;  // values of a position in padded rows: its channels, in whole steps

  int64_t padding() const { return kernel / 2; }
  int64_t pitch() const { return (in.width + 2 * padding()) * pixel; }
  // Rows of the convolution that output rows [first, last) need.
  int64_t conv_first(int64_t first) const { return pool ? std::max(2 * first - 1, int64_t(0)) : first; }
  int64_t conv_last(int64_t last) const { return pool ? std::min(2 * last, conv.height) : last; }
};

// Copies the pixels of a row, `pixel` values apart; `channels` may be known to the compiler.
template <typename T, typename Count>
void copy_pixels(const T* from, int64_t pixels, at::IntArrayRef strides, Count channels,
                 int64_t pixel, T* to) {
  for (int64_t i = 0; i < pixels; i++, from += strides[3], to += pixel)
    for (int64_t c = 0; c < channels; c++) to[c] = from[c * strides[1]];
}

// Input rows of one sample, padded with zeros, from the one that convolution row `first` reads.
template <typename T>
void pad_rows(const Tensor& x, const StemShape& s, int64_t sample, int64_t first, int64_t last,
              std::vector<T>& to) {
  const int64_t count = (last - first - 1) * s.stride + s.kernel;
  const auto strides = x.strides();
  to.assign(count * s.pitch(), T{});
  for (int64_t r = 0; r < count; r++) {
    const int64_t y = first * s.stride - s.padding() + r;
    if (y < 0 || y >= s.in.height) continue;
    const T* from = data_of<T>(x) + sample * strides[0] + y * strides[2];
    T* row = to.data() + r * s.pitch() + s.padding() * s.pixel;
    constexpr std::integral_constant<int64_t, 3> kColours;
    if (s.channels == kColours) copy_pixels(from, s.in.width, strides, kColours, s.pixel, row);
    else copy_pixels(from, s.in.width, strides, s.channels, s.pixel, row);
  }
}

template <typename T>
void stem_conv_as(const Tensor& x, const StemShape& s, const Weights<T>& weights, Tensor& y) {
  const auto& kernels = row_gemm<T>();
  const int64_t bands = ceil_div(s.out.height, kBandRows), width = s.conv.width * s.outputs;
  T* const out = data_to<T>(y);
  at::parallel_for(0, s.in.samples * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> padded, lines(s.pool ? 4 * width : 0), tallest(width);
    RowAddresses<T> addresses;
    for (int64_t task = begin; task < end; task++) {
      const int64_t sample = task / bands, first = task % bands * kBandRows;
      const int64_t last = std::min(first + kBandRows, s.out.height);
      const int64_t start = s.conv_first(first);
      pad_rows(x, s, sample, start, s.conv_last(last), padded);
      int64_t next = start;  // convolution rows before it are there, the latest four of them
      const auto line = [&](int64_t row) { return lines.data() + row % 4 * width; };
      for (int64_t row = first; row < last; row++) {
        T* const to = out + s.out.row(sample, row, 0) * s.outputs;
        for (; next < s.conv_last(row + 1); next++) {
          RowGemm<T> g;
          g.relu = true;
          set_block(g, weights.layout, 0, weights.data());
          T* const values = s.pool ? line(next) : to;
          const T* const from = padded.data() + (next - start) * s.stride * s.pitch();
          addresses.set(g, 0, s.conv.width, false, [&](int64_t, int64_t, RowAddresses<T>& rows) {
            for (int64_t i = 0; i < s.conv.width; i++) {
              rows.out[i] = values + i * s.outputs;
              for (int64_t t = 0; t < s.kernel; t++)
                rows.in[i * s.kernel + t] = from + t * s.pitch() + i * s.stride * s.pixel;
            }
          });
          kernels.run(g);
        }
        if (!s.pool) continue;
        // Rectified values are at least zero, so what is beyond the border needs no value.
        std::copy_n(line(s.conv_first(row)), width, tallest.data());
        for (int64_t r = s.conv_first(row) + 1; r < s.conv_last(row + 1); r++)
          kernels.maximum(line(r), width, tallest.data());
        for (int64_t i = 0; i < s.out.width; i++) {
          const int64_t left = std::max(2 * i - 1, int64_t(0));
          const int64_t right = std::min(2 * i + 2, s.conv.width);
          T* const at = to + i * s.outputs;
          std::copy_n(tallest.data() + left * s.outputs, s.outputs, at);
          for (int64_t c = left + 1; c < right; c++)
            kernels.maximum(tallest.data() + c * s.outputs, s.outputs, at);
        }
      }
    }
  });
}

Tensor stem_conv(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                 bool pool, const OptionalTensor& packed) {
  const MapSize conv = check_stem(x, weight, bias, stride), in = size_of(x);
  const auto type = multiplies_bfloat16(x) ? at::kBFloat16 : compute_type(x);
  const int64_t step = type == at::kBFloat16 ? RowTypes<Bfloat16>::step : 1;
  const StemShape shape{in, conv, pool ? conv.strided(2) : conv, x.size(1), weight.size(2),
                        stride, weight.size(0), pool, round_up(x.size(1), step)};
  // (out, k * C, k, 1): the taps are the window's rows.
  const Tensor rows =
      at::constant_pad_nd(weight, {0, 0, 0, 0, 0, shape.pixel - shape.channels})
          .permute({0, 3, 1, 2})
          .reshape({weight.size(0), shape.kernel * shape.pixel, -1, 1});
  const Tensor from = x.to(type);
  Tensor y = empty_map(from, shape.out, shape.outputs);
  const auto run = [&](auto of_type) {
    using T = decltype(of_type);
    stem_conv_as<T>(from, shape, {rows, bias, 1, false, packed}, y);
  };
  if (type == at::kBFloat16) run(Bfloat16{});
  else if (type == at::kDouble) run(double{});
  else run(float{});
  return y.to(x.scalar_type());
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) { m.impl("stem_conv", stem_conv); }

}  // namespace
}  // namespace laud
