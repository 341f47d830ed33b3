#include "calls.h"

namespace laud {

PositionsCall check_positions(const Tensor& x, const OptionalTensor& index,
                              const OptionalTensor& count, const Tensor& weight,
                              const Tensor& bias, int64_t stride,
                              const OptionalTensor& channel_index,
                              const OptionalTensor& channel_count, int64_t group_size,
                              int64_t granularity) {
  check_map("x", x);
  check_positive("stride", stride);
  check_positive("granularity", granularity);
  check_conv(x, weight, bias, 1, x.size(1), 1);
  const MapSize out = size_of(x).strided(stride);
  TORCH_CHECK(index.has_value() == count.has_value(), "index and count must be given together");
  if (index) check_device("index", *index, x);
  const auto grid = PatchGrid::of(out, index ? granularity : 1);
  const int64_t listed = index ? check_units(*index, *count, grid.patches()) : out.positions();
  return {out, grid, listed,
          check_channels(channel_index, channel_count, group_size, x.size(0), weight.size(0), x)};
}

void check_active(const Tensor& active, const PatchGrid& grid, const Tensor& like) {
  check_device("active", active, like);
  TORCH_CHECK(active.scalar_type() == at::kBool && active.is_contiguous(),
              "active must be contiguous and bool, got ", active.scalar_type(), " with strides ",
              active.strides());
  check_shape("active", active, {grid.map.samples, grid.rows(), grid.columns()});
}

void check_sums(const char* name, const Tensor& sums, at::IntArrayRef shape, const Tensor& like) {
  check_device(name, sums, like);
  TORCH_CHECK(sums.scalar_type() == at::kFloat && sums.is_contiguous(), name,
              " must be contiguous and float32, got ", sums.scalar_type(), " with strides ",
              sums.strides());
  check_shape(name, sums, shape);
}

PatchesCall check_patches(const Tensor& y, const Tensor& index, const Tensor& count,
                          const Tensor& weight, const Tensor& bias, int64_t granularity,
                          int64_t stride, int64_t dilation, int64_t groups,
                          const OptionalTensor& channel_index,
                          const OptionalTensor& channel_count, int64_t group_size) {
  check_map("y", y);
  check_positive("granularity", granularity);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  check_conv(y, weight, bias, 3, y.size(1), groups);
  const auto grid = PatchGrid::of(size_of(y).strided(stride), granularity);
  check_device("index", index, y);
  const int64_t listed = check_units(index, count, grid.patches());
  const auto channels =
      check_channels(channel_index, channel_count, group_size, y.size(0), y.size(1), y);
  TORCH_CHECK(!channels.given() || weight.size(0) == y.size(1),
              "channel_index needs as many outputs as the ", y.size(1),
              " inputs, got weight of shape ", weight.sizes());
  return {grid, listed, channels};
}

PatchesCall check_add_patches(const Tensor& out, const Tensor& identity, const Tensor& rows,
                              const Tensor& index, const Tensor& count, const Tensor& weight,
                              const Tensor& bias, int64_t granularity,
                              const OptionalTensor& channel_index,
                              const OptionalTensor& channel_count, int64_t group_size) {
  check_map("out", out);
  check_map("identity", identity);
  check_same("identity", identity, out);
  check_shape("identity", identity, out.sizes());
  check_positive("granularity", granularity);
  const auto grid = PatchGrid::of(size_of(out), granularity);
  check_same("rows", rows, out);
  TORCH_CHECK(rows.dim() == 3 && rows.is_contiguous(), "rows must be contiguous (P, ",
              grid.area(), ", C), got shape ", rows.sizes());
  check_shape("rows", rows, {index.numel(), grid.area(), rows.size(2)});
  check_conv(rows, weight, bias, 1, rows.size(2), 1);
  TORCH_CHECK(weight.size(0) == out.size(1), "weight must have ", out.size(1),
              " outputs like out has channels, got ", weight.size(0));
  check_device("index", index, out);
  const int64_t listed = check_units(index, count, grid.patches());
  return {grid, listed,
          check_channels(channel_index, channel_count, group_size, out.size(0), rows.size(2), out)};
}

UnitsCall check_depthwise(const Tensor& x, const Tensor& index, const Tensor& count,
                          const Tensor& taps, const Tensor& bias, int64_t granularity) {
  check_map("x", x);
  check_positive("granularity", granularity);
  check_same("taps", taps, x);
  TORCH_CHECK(taps.dim() == 3 && taps.size(0) == taps.size(1) && taps.size(0) % 2 == 1 &&
                  taps.size(2) == x.size(1) && taps.is_contiguous(),
              "taps must be contiguous (k, k, ", x.size(1), ") with an odd k, got shape ",
              taps.sizes());
  check_same("bias", bias, x);
  check_shape("bias", bias, {x.size(1)});
  const auto grid = PatchGrid::of(size_of(x), granularity);
  check_device("index", index, x);
  return {grid, check_units(index, count, grid.patches())};
}

UnitsCall check_mlp(const Tensor& out, const Tensor& identity, const Tensor& rows,
                    const Tensor& index, const Tensor& count, const Tensor& weight1,
                    const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                    int64_t granularity) {
  check_map("out", out);
  check_map("identity", identity);
  check_same("identity", identity, out);
  check_shape("identity", identity, out.sizes());
  check_positive("granularity", granularity);
  const auto grid = PatchGrid::of(size_of(out), granularity);
  const int64_t channels = out.size(1);
  check_same("rows", rows, out);
  TORCH_CHECK(rows.dim() == 3 && rows.is_contiguous(), "rows must be contiguous (P, ",
              grid.area(), ", C), got shape ", rows.sizes());
  check_shape("rows", rows, {index.numel(), grid.area(), channels});
  for (const auto& [name, tensor] : {std::pair{"weight1", weight1}, {"bias1", bias1},
                                     {"weight2", weight2}, {"bias2", bias2}})
    check_same(name, tensor, out);
  TORCH_CHECK(weight1.dim() == 4, "weight1 must be (hidden, ", channels, ", 1, 1), got shape ",
              weight1.sizes());
  const int64_t hidden = weight1.size(0);
  check_shape("weight1", weight1, {hidden, channels, 1, 1});
  check_shape("bias1", bias1, {hidden});
  check_shape("weight2", weight2, {channels, hidden, 1, 1});
  check_shape("bias2", bias2, {channels});
  check_device("index", index, out);
  return {grid, check_units(index, count, grid.patches())};
}

PatchesCall check_excite(const Tensor& rows, const Tensor& index, const Tensor& count,
                         int64_t height, int64_t width, int64_t granularity,
                         const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                         const Tensor& bias2, const OptionalTensor& channel_index,
                         const OptionalTensor& channel_count, int64_t group_size) {
  check_positive("height", height);
  check_positive("width", width);
  check_positive("granularity", granularity);
  check_floating("rows", rows);
  TORCH_CHECK(rows.dim() == 3 && rows.is_contiguous(),
              "rows must be contiguous (P, S * S, C), got shape ", rows.sizes());
  // Samples are not known here: as many as the list has room for.
  const auto one = PatchGrid::of({1, height, width}, granularity);
  TORCH_CHECK(index.dim() == 1 && index.numel() % one.patches() == 0,
              "index must list whole samples of ", one.patches(), " patches, got shape ",
              index.sizes());
  const auto grid =
      PatchGrid::of({index.numel() / one.patches(), height, width}, granularity);
  const int64_t channels = rows.size(2);
  check_shape("rows", rows, {index.numel(), grid.area(), channels});
  TORCH_CHECK(weight1.dim() == 2, "weight1 must be (hidden, C), got shape ", weight1.sizes());
  const int64_t hidden = weight1.size(0);
  check_shape("weight1", weight1, {hidden, channels});
  check_shape("bias1", bias1, {hidden});
  check_shape("weight2", weight2, {channels, hidden});
  check_shape("bias2", bias2, {channels});
  for (const auto& [name, tensor] : {std::pair{"weight1", weight1}, {"bias1", bias1},
                                     {"weight2", weight2}, {"bias2", bias2}})
    check_same(name, tensor, rows);
  check_device("index", index, rows);
  return {grid, check_units(index, count, grid.patches()),
          check_channels(channel_index, channel_count, group_size, grid.map.samples, channels,
                         rows)};
}

PatchGrid check_masker(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t window) {
  check_map("x", x);
  check_positive("window", window);
  check_device("mask weight", weight, x);
  check_device("mask bias", bias, x);
  check_shape("mask weight", weight, {x.size(1)});
  check_shape("mask bias", bias, {1});
  return PatchGrid::of(size_of(x), window);
}

MapSize check_stem(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride) {
  check_floating("x", x);
  TORCH_CHECK(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0,
              "x must be (N, C, H, W) with positions, got shape ", x.sizes());
  check_positive("stride", stride);
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) &&
                  weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1,
              "weight must be (out, ", x.size(1), ", k, k) with an odd k, got shape ",
              weight.sizes());
  check_same("weight", weight, x);
  check_same("bias", bias, x);
  check_shape("bias", bias, {weight.size(0)});
  return size_of(x).strided(stride);
}

void check_compact(const Tensor& mask) {
  TORCH_CHECK(mask.dim() == 2 && mask.scalar_type() == at::kBool,
              "mask must be bool (rows, units), got ", mask.scalar_type(), " of shape ",
              mask.sizes());
  TORCH_CHECK(mask.size(1) <= INT32_MAX, "mask must have at most 2^31 - 1 units a row, got ",
              mask.size(1));
}

HaloCall check_halo(const Tensor& index, const Tensor& count, int64_t samples, int64_t height,
                    int64_t width, int64_t granularity, int64_t stride, int64_t dilation) {
  for (const auto& [name, value] :
       {std::pair{"height", height}, {"width", width}, {"granularity", granularity},
        {"stride", stride}, {"dilation", dilation}}) {
    check_positive(name, value);
    TORCH_CHECK(value <= INT32_MAX, name, " must be at most 2^31 - 1, got ", value);
  }
  TORCH_CHECK(samples >= 0 && samples <= INT32_MAX, "samples must be from 0 to 2^31 - 1, got ",
              samples);
  const MapSize in{samples, height, width};
  TORCH_CHECK(height * width <= INT32_MAX && in.positions() <= INT32_MAX,
              "the map must have at most 2^31 - 1 positions, got ", samples, " x ", height, " x ",
              width);
  const auto grid = PatchGrid::of(in.strided(stride), granularity);
  return {in, grid, check_units(index, count, grid.patches())};
}

void check_row_list(const char* what, const Tensor& index, const Tensor& like) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.dim() == 1, what,
              " must be a vector of int64, got ", index.scalar_type(), " of shape ",
              index.sizes());
  check_device(what, index, like);
}

void check_tokens(const char* name, const Tensor& tokens) {
  check_floating(name, tokens);
  TORCH_CHECK(tokens.dim() == 3 && tokens.is_contiguous(), name,
              " must be contiguous (N, T, C), got strides ", tokens.strides(), " of shape ",
              tokens.sizes());
}

void check_add_tokens(const Tensor& out, const Tensor& index, const Tensor& rows) {
  check_tokens("out", out);
  check_row_list("index", index, out);
  check_same("rows", rows, out);
  check_shape("rows", rows, {index.numel(), out.size(2)});
}

}  // namespace laud
