// What a ConvNeXt computes (CPU): of its blocks' branch, on listed patches, depthwise convolution
// and norm, then two pointwise layers with a GELU between; and what lies between two stages.
//
// Both layers run on a chunk of rows at a time, so that what is between them, four times as wide
// as a map, stays in the second-level cache; one after the other where that would be few rows.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>

#include "channel_rows.h"
#include "tensors.h"

namespace laud {
namespace {

// Patches are cut to pieces whose windows, one vector of channels wide, stay in the nearest cache.
constexpr int64_t kPieceLines = 8, kPieceColumns = 16;

// (blocks, k * k, vector) taps and (blocks * vector) bias, zero-padded.
template <typename S>
Tensor pad_taps(const Tensor& taps, int64_t vector) {
  const int64_t channels = taps.size(2), padded = round_up(channels, vector);
  return at::constant_pad_nd(taps.to(scalar_type<S>()), {0, padded - channels})
      .view({taps.size(0) * taps.size(1), -1, vector}).transpose(0, 1).contiguous();
}

template <typename T>
void depthwise_norm_as(const Tensor& x, const Tensor& index, int64_t listed,
                       const PatchGrid& grid, const Tensor& taps_, const Tensor& bias_, double eps,
                       Tensor& rows) {
  using S = Unit<T>;
  constexpr bool widens = !std::is_same_v<T, S>;
  const auto& kernels = row_gemm<S>();
  const MapSize map = size_of(x);
  const int64_t channels = x.size(1), kernel = taps_.size(0), reach = kernel / 2;
  const Tensor taps = pad_taps<S>(taps_, kernels.vector);
  const Tensor bias = at::constant_pad_nd(
      bias_.to(scalar_type<S>()), {0, round_up(channels, kernels.vector) - channels});
  const auto cut = [](int64_t size, int64_t most) { return ceil_div(size, ceil_div(size, most)); };
  const int64_t lines = cut(grid.patch_height, kPieceLines);
  const int64_t columns = cut(grid.patch_width, kPieceColumns);
  const int64_t across = ceil_div(grid.patch_width, columns);
  const int64_t pieces = ceil_div(grid.patch_height, lines) * across;
  const int64_t high = lines + kernel - 1, wide = columns + kernel - 1;
  const T* from = data_of<T>(x);
  T* to = data_to<T>(rows);
  const int32_t* patches = index.const_data_ptr<int32_t>();
  at::parallel_for(0, listed * pieces, 1, [&](int64_t begin, int64_t end) {
    AlignedRows<S> windows, sources, results;
    S* const window = windows.of(high * wide * kernels.vector);
    S* const source = sources.of(widens ? high * wide * channels : 0);
    S* const result = results.of(widens ? lines * columns * channels : 0);
    for (int64_t task = begin; task < end; task++) {
      const int64_t number = task / pieces, piece = task % pieces;
      const Patch patch = grid.at(patches[number]);
      const int64_t py = piece / across * lines, px = piece % across * columns;
      const int64_t last_y = std::min(py + lines, grid.patch_height);
      const int64_t last_x = std::min(px + columns, grid.patch_width);
      const int64_t height = std::min(last_y, patch.height) - py;
      const int64_t width = std::min(last_x, patch.width) - px;
      T* const out = to + (number * grid.area() + py * grid.patch_width + px) * channels;
      const int64_t pitch = grid.patch_width * channels;
      // What lies beyond the map's edge is multiplied too, and must not be slow or NaN.
      for (int64_t y = 0; y < last_y - py; y++) {
        const int64_t inside = y < height ? std::max(width, int64_t(0)) : 0;
        std::fill(out + y * pitch + inside * channels,
                  out + y * pitch + (last_x - px) * channels, T{});
      }
      if (height <= 0 || width <= 0) continue;
      DepthwisePiece<S> p;
      p.channels = channels;
      p.lines = height;
      p.columns = width;
      p.kernel = kernel;
      p.taps = data_of<S>(taps);
      p.bias = data_of<S>(bias);
      p.window = window;
      const int64_t y = patch.first.y + py, left = patch.first.x + px;
      if constexpr (widens) {
        const int64_t first_y = std::max(y - reach, int64_t(0));
        const int64_t first_x = std::max(left - reach, int64_t(0));
        p.height = std::min(y + height + reach, map.height) - first_y;
        p.width = std::min(left + width + reach, map.width) - first_x;
        for (int64_t line = 0; line < p.height; line++)
          row_gemm<T>().widen(from + map.row(patch.first.sample, first_y + line, first_x) * channels,
                              p.width * channels, source + line * p.width * channels);
        p.map = source;
        p.y = y - first_y;
        p.x = left - first_x;
        p.out = result;
        p.line_pitch = width * channels;
      } else {
        p.map = from + map.row(patch.first.sample, 0, 0) * channels;
        p.height = map.height;
        p.width = map.width;
        p.y = y;
        p.x = left;
        p.out = out;
        p.line_pitch = pitch;
      }
      kernels.depthwise(p);
      for (int64_t line = 0; line < height; line++)
        for (int64_t column = 0; column < width; column++) {
          S* const row = p.out + line * p.line_pitch + column * channels;
          kernels.normalize(row, channels, S(eps));
          if constexpr (widens)
            row_gemm<T>().narrow(row, channels, out + line * pitch + column * channels);
        }
    }
  });
}

// GELU of some values in place; `room` is for as many where they are of a half type.
template <typename T>
void gelu(T* values, int64_t size, AlignedRows<Unit<T>>& room) {
  if constexpr (std::is_same_v<T, Unit<T>>) {
    row_gemm<T>().gelu(values, size);
  } else {
    Unit<T>* const wide = room.of(size);
    row_gemm<T>().widen(values, size, wide);
    row_gemm<Unit<T>>().gelu(wide, size);
    row_gemm<T>().narrow(wide, size, values);
  }
}

template <typename T>
void mlp_add_as(Tensor& out, const Tensor& identity, const Tensor& rows_in, const Tensor& index,
                int64_t listed, const PatchGrid& grid, const Weights<T>& first,
                const Weights<T>& second) {
  constexpr int64_t kFewRows = 48, kLeastChunk = 96;
  constexpr int64_t kBetween = 3 << 16;  // values between the layers, of a chunk
  const auto& kernels = row_gemm<T>();
  const int64_t channels = out.size(1), hidden = first.layout.outputs;
  const int64_t count = listed * grid.area(), threads = at::get_num_threads();
  const T *from = data_of<T>(rows_in), *base = data_of<T>(identity);
  T* to = data_to<T>(out);
  const int32_t* patches = index.const_data_ptr<int32_t>();
  // Reads what is between the layers, of rows from `start` on.
  const auto second_rows = [&](const T* between, int64_t start) {
    return [&, between, start](int64_t begin, int64_t end, RowAddresses<T>& rows) {
      rows.unused.resize(channels);
      visit_rows(grid, patches, begin, end,
                 [&](int64_t row, const Patch& patch, int64_t py, int64_t px) {
        const int64_t r = row - begin;
        rows.in[r] = between + (row - start) * hidden;
        if (py >= patch.height || px >= patch.width) {
          rows.add[r] = rows.out[r] = rows.unused.data();
          return;
        }
        const int64_t at =
            grid.map.row(patch.first.sample, patch.first.y + py, patch.first.x + px) * channels;
        rows.add[r] = base + at;
        rows.out[r] = to + at;
      });
    };
  };
  const auto first_rows = [&](T* between, int64_t start) {
    return [&, between, start](int64_t begin, int64_t end, RowAddresses<T>& rows) {
      for (int64_t row = begin; row < end; row++) {
        rows.in[row - begin] = from + row * channels;
        rows.out[row - begin] = between + (row - start) * hidden;
      }
    };
  };
  // Few rows are not worth reading all weights for: then threads share the weights instead.
  if (count < kFewRows * threads || kBetween / hidden < kLeastChunk) {
    AlignedRows<T> memory;
    T* const between = memory.of(count * hidden);
    run_rows<T>(first.layout, first.data(), count, false, false, first_rows(between, 0));
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      AlignedRows<Unit<T>> room;
      for (int64_t row = begin; row < end; row++) gelu(between + row * hidden, hidden, room);
    });
    return run_rows<T>(second.layout, second.data(), count, false, true, second_rows(between, 0));
  }
  const int64_t most = std::clamp(kBetween / hidden / kernels.rows, int64_t(4), int64_t(32)) *
                       kernels.rows;
  const int64_t chunks = round_up(ceil_div(count, most), threads);
  const int64_t chunk = round_up(ceil_div(count, chunks), kernels.rows);
  at::parallel_for(0, ceil_div(count, chunk), 1, [&](int64_t begin, int64_t end) {
    AlignedRows<T> memory;
    AlignedRows<Unit<T>> room;
    T* const between = memory.of(chunk * hidden);
    RowAddresses<T> addresses;
    for (int64_t task = begin; task < end; task++) {
      const int64_t start = task * chunk, last = std::min(count, start + chunk);
      RowGemm<T> g;
      addresses.set(g, start, last, false, first_rows(between, start));
      set_block(g, first.layout, 0, first.data());
      kernels.run(g);
      for (int64_t row = 0; row < last - start; row++)
        gelu(between + row * hidden, hidden, room);
      RowGemm<T> h;
      addresses.set(h, start, last, true, second_rows(between, start));
      set_block(h, second.layout, 0, second.data());
      kernels.run(h);
    }
  });
}

// A row of the window is contiguous in a map, so k x k windows of C channels have k taps of k * C
// inputs.
template <typename T>
void patchify_as(const Tensor& x, int64_t kernel, const Weights<T>& weights, Tensor& y) {
  const MapSize in = size_of(x), out = size_of(y);
  const int64_t depth = x.size(1), width = y.size(1);
  const T* from = data_of<T>(x);
  T* to = data_to<T>(y);
  run_rows<T>(weights.layout, weights.data(), out.positions(), false, false,
              [&](int64_t first, int64_t last, RowAddresses<T>& rows) {
                for (int64_t r = first; r < last; r++) {
                  const Position p = out.at(r);
                  rows.out[r - first] = to + r * width;
                  for (int64_t t = 0; t < kernel; t++)
                    rows.in[(r - first) * kernel + t] =
                        from + in.row(p.sample, p.y * kernel + t, p.x * kernel) * depth;
                }
              });
}

Tensor patchify(const Tensor& x, const Tensor& weight, const Tensor& bias,
                const OptionalTensor& packed) {
  check_map("x", x);
  check_conv(x, weight, bias, weight.dim() == 4 ? weight.size(2) : 1, x.size(1), 1);
  const int64_t kernel = weight.size(2);
  TORCH_CHECK(x.size(2) >= kernel && x.size(3) >= kernel, "x must have at least ", kernel,
              " rows and columns, got shape ", x.sizes());
  const auto type = multiplies_bfloat16(x) ? at::kBFloat16 : compute_type(x);
  const Tensor rows = weight.permute({0, 3, 1, 2}).reshape({weight.size(0), -1, kernel, 1});
  const Tensor from = x.to(type);
  Tensor y = empty_map(from, {x.size(0), x.size(2) / kernel, x.size(3) / kernel}, weight.size(0));
  const auto run = [&](auto of_type) {
    using T = decltype(of_type);
    patchify_as<T>(from, kernel, {rows, bias, 1, false, packed}, y);
  };
  if (type == at::kBFloat16) run(Bfloat16{});
  else if (type == at::kDouble) run(double{});
  else run(float{});
  return y.to(x.scalar_type());
}

Tensor depthwise_norm_patches(const Tensor& x, const Tensor& index, const Tensor& count,
                              const Tensor& taps, const Tensor& bias, int64_t granularity,
                              double eps) {
  const auto call = check_depthwise(x, index, count, taps, bias, granularity);
  if (multiplies_bfloat16(x)) {
    Tensor rows = at::empty({index.numel(), call.grid.area(), x.size(1)}, x.options());
    depthwise_norm_as<Bfloat16>(x, index, call.listed, call.grid, taps, bias, eps, rows);
    return rows;
  }
  const auto type = compute_type(x);
  const Tensor from = x.to(type);
  Tensor rows = at::empty({index.numel(), call.grid.area(), x.size(1)}, x.options().dtype(type));
  AT_DISPATCH_FLOATING_TYPES(type, "depthwise_norm_patches", [&] {
    depthwise_norm_as<scalar_t>(from, index, call.listed, call.grid, taps, bias, eps, rows);
  });
  return rows.to(x.scalar_type());
}

void mlp_add_patches_(Tensor& out, const Tensor& identity, const Tensor& rows, const Tensor& index,
                      const Tensor& count, const Tensor& weight1, const Tensor& bias1,
                      const Tensor& weight2, const Tensor& bias2, int64_t granularity,
                      const OptionalTensor& packed1, const OptionalTensor& packed2) {
  const auto call = check_mlp(out, identity, rows, index, count, weight1, bias1, weight2, bias2,
                              granularity);
  if (multiplies_bfloat16(out))
    return mlp_add_as<Bfloat16>(out, identity, rows, index, call.listed, call.grid,
                                {weight1, bias1, 1, false, packed1},
                                {weight2, bias2, 1, false, packed2});
  const auto type = compute_type(out);
  const bool same = type == out.scalar_type();
  const Tensor from = rows.to(type), base = identity.to(type);
  Tensor to = out.to(type);
  AT_DISPATCH_FLOATING_TYPES(type, "mlp_add_patches_", [&] {
    mlp_add_as<scalar_t>(to, base, from, index, call.listed, call.grid,
                         {weight1, bias1, 1, false, packed1}, {weight2, bias2, 1, false, packed2});
  });
  if (!same) out.copy_(to);
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("patchify", patchify);
  m.impl("depthwise_norm_patches", depthwise_norm_patches);
  m.impl("mlp_add_patches_", mlp_add_patches_);
}

}  // namespace
}  // namespace laud
