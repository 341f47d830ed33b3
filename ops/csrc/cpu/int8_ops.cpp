// Convolutions of 8-bit integers on listed units, and what quantised networks need around
// them (CPU).
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../common/calls.h"
#include "int8_gemm.h"

namespace laud {

Tensor pack_int8(const Tensor& weight, const Tensor& bias, const Tensor& multiplier);

namespace {

void check_bytes(const char* name, const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kByte, name, " must be uint8, got ", x.scalar_type());
}

void check_byte_map(const char* name, const Tensor& x) {
  check_bytes(name, x);
  TORCH_CHECK(x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, name,
              " must be a map (N, C, H, W), got shape ", x.sizes());
  TORCH_CHECK(x.is_contiguous(at::MemoryFormat::ChannelsLast), name,
              " must be channels-last, got strides ", x.strides(), " of shape ", x.sizes());
}

Int8Layout check_int8_conv(const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                           int64_t kernel, int64_t channels) {
  TORCH_CHECK(weight.scalar_type() == at::kChar, "weight must be int8, got ",
              weight.scalar_type());
  TORCH_CHECK(bias.scalar_type() == at::kInt, "bias must be int32, got ", bias.scalar_type());
  TORCH_CHECK(multiplier.scalar_type() == at::kFloat, "multiplier must be float32, got ",
              multiplier.scalar_type());
  TORCH_CHECK(weight.dim() == 4, "weight must have 4 dimensions, got shape ", weight.sizes());
  check_shape("weight", weight, {weight.size(0), channels, kernel, kernel});
  check_shape("bias", bias, {weight.size(0)});
  check_shape("multiplier", multiplier, {weight.size(0)});
  return {kernel * kernel, channels, weight.size(0)};
}

}  // namespace

Tensor pack_int8(const Tensor& weight, const Tensor& bias, const Tensor& multiplier) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3),
              "weight must be (out, in, k, k), got shape ", weight.sizes());
  const auto layout =
      check_int8_conv(weight, bias, multiplier, weight.size(2), weight.size(1));
  const Tensor values = weight.permute({0, 2, 3, 1}).contiguous(), shifts = bias.contiguous(),
               factors = multiplier.contiguous();
  const int8_t* from = values.const_data_ptr<int8_t>();
  const float* multipliers = factors.const_data_ptr<float>();
  for (int64_t n = 0; n < layout.outputs; n++)
    TORCH_CHECK(multipliers[n] >= 0 && multipliers[n] < 1,
                "multiplier must be from 0 to below 1, got ", multipliers[n], " at ", n);
  Tensor packed = at::zeros({layout.size()}, weight.options());
  constexpr int64_t width = Int8Layout::kPanel;
  for (int64_t n = 0; n < layout.outputs; n++) {
    int8_t* panel = packed.mutable_data_ptr<int8_t>() + n / width * layout.panel_size();
    reinterpret_cast<int32_t*>(panel)[n % width] = shifts.const_data_ptr<int32_t>()[n];
    reinterpret_cast<float*>(panel)[width + n % width] = multipliers[n];
    int8_t* to = panel + Int8Layout::kHead + n % width * 4;
    for (int64_t t = 0; t < layout.taps; t++)
      for (int64_t k = 0; k < layout.inputs; k++)
        to[(t * layout.quads() + k / 4) * 4 * width + k % 4] =
            from[(n * layout.taps + t) * layout.inputs + k];
  }
  return packed;
}

namespace {

// The packed weights of a convolution, prepared or made now.
Tensor packed_of(const Int8Layout& layout, const Tensor& weight, const Tensor& bias,
                 const Tensor& multiplier, const OptionalTensor& packed) {
  if (!packed) return pack_int8(weight, bias, multiplier);
  TORCH_CHECK(packed->scalar_type() == at::kChar && packed->is_contiguous() && packed->is_cpu() &&
                  packed->numel() == layout.size(),
              "packed must hold ", layout.size(), " contiguous values of int8 made by pack_int8, "
              "got ", packed->numel(), " of ", packed->scalar_type());
  return *packed;
}

// Addresses of some rows; `add` and `wide` ones only where they are used.
struct Int8Addresses {
  std::vector<const uint8_t*> in, add;
  std::vector<const int16_t*> wide_add;
  std::vector<uint8_t*> out;
  std::vector<int16_t*> wide_out;
  std::vector<uint8_t> unused;  // what rows outside the map are added from and written to

  Int8Addresses(int64_t rows, const Int8Layout& layout)
      : in(rows * layout.taps), add(rows), wide_add(rows), out(rows), wide_out(rows),
        unused(2 * layout.outputs) {}
};

enum class Add { kNone, kBytes, kWide };

// How rows and panels are shared between threads, and in which pieces a thread takes them.
struct Int8Tasks {
  int64_t row_tasks, rows, panel_tasks, panels, piece;

  static Int8Tasks of(int64_t rows, const Int8Layout& layout, int64_t row_tile) {
    constexpr int64_t kPiece = 1 << 20;  // bytes of input that should stay in the cache
    const int64_t threads = at::get_num_threads(), panels = layout.panels();
    const int64_t depth = layout.taps * layout.inputs;
    // What every thread reads in full should be the smaller matrix.
    const bool by_rows = rows >= panels * Int8Layout::kPanel || panels < threads;
    Int8Tasks tasks{1, rows, 1, panels, 0};
    if (by_rows) {
      tasks.rows = std::min(rows, round_up(ceil_div(rows, threads), row_tile));
      tasks.row_tasks = ceil_div(rows, tasks.rows);
    } else {
      tasks.panels = ceil_div(panels, threads);
      tasks.panel_tasks = ceil_div(panels, tasks.panels);
    }
    tasks.piece = std::max(row_tile, std::min<int64_t>(kPiece / depth, 512) / row_tile * row_tile);
    return tasks;
  }
  static int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }
};

// Run rows [0, rows); fill(first, last, addresses) writes the addresses of some of them.
template <typename Fill>
void run_int8(const Int8Layout& layout, const Tensor& packed, int64_t rows, Add add, bool wide_out,
              const Fill& fill) {
  if (rows == 0) return;
  const auto& kernels = int8_kernels();
  const auto tasks = Int8Tasks::of(rows, layout, kernels.row_tile);
  at::parallel_for(0, tasks.row_tasks * tasks.panel_tasks, 1, [&](int64_t begin, int64_t end) {
    Int8Addresses addresses(std::min(tasks.piece, rows), layout);
    for (int64_t task = begin; task < end; task++) {
      const int64_t start = task / tasks.panel_tasks * tasks.rows;
      const int64_t stop = std::min(rows, start + tasks.rows);
      Int8Gemm g;
      g.layout = layout;
      g.packed = packed.const_data_ptr<int8_t>();
      g.first_panel = task % tasks.panel_tasks * tasks.panels;
      g.last_panel = std::min(layout.panels(), g.first_panel + tasks.panels);
      g.in = addresses.in.data();
      g.out = addresses.out.data();
      if (add == Add::kBytes) g.add = addresses.add.data();
      if (add == Add::kWide) g.wide_add = addresses.wide_add.data();
      if (wide_out) g.wide_out = addresses.wide_out.data();
      for (int64_t first = start; first < stop; first += tasks.piece) {
        const int64_t last = std::min(stop, first + tasks.piece);
        g.rows = last - first;
        fill(first, last, addresses);
        kernels.run(g);
      }
    }
  });
}

// A 1x1 convolution of positions; `wide` (or null) gets the result before ReLU.
void run_positions(const Tensor& x, const int32_t* positions, int64_t listed,
                   const Int8Layout& layout, const Tensor& packed, int64_t stride, Tensor& y,
                   Tensor* wide) {
  const MapSize in = size_of(x), out = size_of(y);
  const uint8_t* from = x.const_data_ptr<uint8_t>();
  uint8_t* to = y.mutable_data_ptr<uint8_t>();
  int16_t* wide_to = wide ? wide->mutable_data_ptr<int16_t>() : nullptr;
  run_int8(layout, packed, listed, Add::kNone, wide != nullptr,
           [&](int64_t first, int64_t last, Int8Addresses& rows) {
             for (int64_t r = first; r < last; r++) {
               int64_t row = positions ? positions[r] : r;
               rows.out[r - first] = to + row * layout.outputs;
               if (wide) rows.wide_out[r - first] = wide_to + row * layout.outputs;
               if (stride > 1) {
                 const Position p = out.at(row);
                 row = in.row(p.sample, p.y * stride, p.x * stride);
               }
               rows.in[r - first] = from + row * layout.inputs;
             }
           });
}

Tensor conv1x1_positions_int8(const Tensor& x, const OptionalTensor& index,
                              const OptionalTensor& count, const Tensor& weight,
                              const Tensor& bias, const Tensor& multiplier, int64_t stride,
                              const OptionalTensor& packed) {
  check_byte_map("x", x);
  check_positive("stride", stride);
  const auto layout = check_int8_conv(weight, bias, multiplier, 1, x.size(1));
  const MapSize out = size_of(x).strided(stride);
  TORCH_CHECK(index.has_value() == count.has_value(), "index and count must be given together");
  const int64_t listed = index ? check_units(*index, *count, out.positions()) : out.positions();
  Tensor y = empty_map(x, out, layout.outputs);
  run_positions(x, index ? index->const_data_ptr<int32_t>() : nullptr, listed, layout,
                packed_of(layout, weight, bias, multiplier, packed), stride, y, nullptr);
  return y;
}

std::tuple<Tensor, Tensor> shortcut_int8(const Tensor& x, const Tensor& weight,
                                         const Tensor& bias, const Tensor& multiplier,
                                         int64_t stride, const OptionalTensor& packed) {
  check_byte_map("x", x);
  check_positive("stride", stride);
  const auto layout = check_int8_conv(weight, bias, multiplier, 1, x.size(1));
  const MapSize out = size_of(x).strided(stride);
  Tensor y = empty_map(x, out, layout.outputs);
  Tensor wide = empty_map(x.new_empty({0}, at::kShort), out, layout.outputs);
  run_positions(x, nullptr, out.positions(), layout,
                packed_of(layout, weight, bias, multiplier, packed), stride, y, &wide);
  return {wide, y};
}

Tensor conv3x3_patches_int8(const Tensor& y, const Tensor& index, const Tensor& count,
                            const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                            int64_t granularity, int64_t stride, int64_t dilation,
                            const OptionalTensor& packed) {
  check_byte_map("y", y);
  check_positive("granularity", granularity);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  const auto layout = check_int8_conv(weight, bias, multiplier, 3, y.size(1));
  const MapSize in = size_of(y);
  const auto grid = PatchGrid::of(in.strided(stride), granularity);
  const int64_t listed = check_units(index, count, grid.patches());
  const Window window{stride, dilation};
  const Tensor prepared = packed_of(layout, weight, bias, multiplier, packed);
  Tensor rows_out = at::empty({index.numel(), grid.area(), layout.outputs},
                              y.options().memory_format(at::MemoryFormat::Contiguous));
  const std::vector<uint8_t> zeros(layout.inputs, 0);
  const uint8_t* from = y.const_data_ptr<uint8_t>();
  uint8_t* to = rows_out.mutable_data_ptr<uint8_t>();
  const int32_t* patches = index.const_data_ptr<int32_t>();
  run_int8(layout, prepared, listed * grid.area(), Add::kNone, false,
           [&](int64_t first, int64_t last, Int8Addresses& rows) {
             visit_rows(grid, patches, first, last,
                        [&](int64_t row, const Patch& patch, int64_t py, int64_t px) {
               rows.out[row - first] = to + row * layout.outputs;
               const uint8_t** taps = &rows.in[(row - first) * 9];
               if (py >= patch.height || px >= patch.width) {
                 std::fill(taps, taps + 9, zeros.data());
                 return;
               }
               const Position at{patch.first.sample, patch.first.y + py, patch.first.x + px};
               for (int64_t t = 0; t < 9; t++) {
                 const int64_t read = input_row(in, window, at, t / 3, t % 3);
                 taps[t] = read < 0 ? zeros.data() : from + read * layout.inputs;
               }
             });
           });
  return rows_out;
}

void conv1x1_add_patches_int8_(Tensor& out, const Tensor& identity, const Tensor& rows_in,
                               const Tensor& index, const Tensor& count, const Tensor& weight,
                               const Tensor& bias, const Tensor& multiplier, int64_t granularity,
                               const OptionalTensor& packed) {
  check_byte_map("out", out);
  const bool wide = identity.scalar_type() == at::kShort;
  TORCH_CHECK(wide || identity.scalar_type() == at::kByte,
              "identity must be uint8 or int16, got ", identity.scalar_type());
  check_shape("identity", identity, out.sizes());
  TORCH_CHECK(identity.is_contiguous(at::MemoryFormat::ChannelsLast),
              "identity must be channels-last, got strides ", identity.strides());
  check_positive("granularity", granularity);
  const auto grid = PatchGrid::of(size_of(out), granularity);
  check_bytes("rows", rows_in);
  TORCH_CHECK(rows_in.dim() == 3 && rows_in.is_contiguous(), "rows must be contiguous (P, ",
              grid.area(), ", C), got shape ", rows_in.sizes());
  check_shape("rows", rows_in, {index.numel(), grid.area(), rows_in.size(2)});
  const auto layout = check_int8_conv(weight, bias, multiplier, 1, rows_in.size(2));
  TORCH_CHECK(layout.outputs == out.size(1), "weight must have ", out.size(1),
              " outputs like out has channels, got ", layout.outputs);
  const int64_t listed = check_units(index, count, grid.patches());
  const uint8_t* from = rows_in.const_data_ptr<uint8_t>();
  const uint8_t* base = wide ? nullptr : identity.const_data_ptr<uint8_t>();
  const int16_t* wide_base = wide ? identity.const_data_ptr<int16_t>() : nullptr;
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  const int32_t* patches = index.const_data_ptr<int32_t>();
  run_int8(layout, packed_of(layout, weight, bias, multiplier, packed), listed * grid.area(),
           wide ? Add::kWide : Add::kBytes, false,
           [&](int64_t first, int64_t last, Int8Addresses& rows) {
             visit_rows(grid, patches, first, last,
                        [&](int64_t row, const Patch& patch, int64_t py, int64_t px) {
               const int64_t r = row - first;
               rows.in[r] = from + row * layout.inputs;
               if (py >= patch.height || px >= patch.width) {
                 rows.add[r] = rows.out[r] = rows.unused.data();
                 rows.wide_add[r] = reinterpret_cast<const int16_t*>(rows.unused.data());
                 return;
               }
               const int64_t at = layout.outputs * grid.map.row(patch.first.sample,
                                                                patch.first.y + py,
                                                                patch.first.x + px);
               rows.out[r] = to + at;
               if (wide) rows.wide_add[r] = wide_base + at;
               else rows.add[r] = base + at;
             });
           });
}

// A window is on where the mean of its positions, times the weights, is not below -bias.
// Sums are exact, products and their sum in float64.
Tensor patch_mask_int8(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       int64_t window) {
  check_byte_map("x", x);
  check_positive("window", window);
  check_shape("weight", weight, {x.size(1)});
  check_shape("bias", bias, {1});
  const auto grid = PatchGrid::of(size_of(x), window);
  const auto& kernels = int8_kernels();
  const int64_t channels = x.size(1);
  const Tensor weights = weight.to(at::kDouble).contiguous();
  const double shift = bias.to(at::kDouble).item<double>();
  const double* w = weights.const_data_ptr<double>();
  const uint8_t* from = x.const_data_ptr<uint8_t>();
  Tensor mask = at::empty({x.size(0), grid.rows(), grid.columns()}, x.options().dtype(at::kBool));
  bool* on = mask.mutable_data_ptr<bool>();
  at::parallel_for(0, grid.patches(), 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> sums(channels);
    for (int64_t p = begin; p < end; p++) {
      const Patch patch = grid.at(p);
      const int64_t row = grid.map.row(patch.first.sample, patch.first.y, patch.first.x);
      kernels.sum_window(from + row * channels, patch.height, grid.map.width * channels,
                         patch.width, channels, sums.data());
      double logit = 0;
      for (int64_t c = 0; c < channels; c++) logit += sums[c] * w[c];
      on[p] = !(logit / (patch.height * patch.width) + shift < 0);  // NaN is on
    }
  });
  return mask;
}

Tensor quantize(const Tensor& x, double scale) {
  check_floating("x", x);
  TORCH_CHECK(x.is_non_overlapping_and_dense(), "x must have no gaps, got strides ", x.strides(),
              " of shape ", x.sizes());
  TORCH_CHECK(scale > 0, "scale must be above 0, got ", scale);
  const Tensor from = x.to(at::kFloat);
  Tensor y = at::empty_like(from, from.options().dtype(at::kByte));
  const float* values = from.const_data_ptr<float>();
  uint8_t* to = y.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, from.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    int8_kernels().quantize(values + begin, static_cast<float>(1 / scale), 0,
                            end - begin, to + begin);
  });
  return y;
}

Tensor dequantize(const Tensor& x, double scale) {
  check_bytes("x", x);
  TORCH_CHECK(x.is_non_overlapping_and_dense(), "x must have no gaps, got strides ", x.strides(),
              " of shape ", x.sizes());
  Tensor y = at::empty_like(x, x.options().dtype(at::kFloat));
  const uint8_t* values = x.const_data_ptr<uint8_t>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    int8_kernels().dequantize(values + begin, static_cast<float>(scale), end - begin, to + begin);
  });
  return y;
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("pack_int8", pack_int8);
  m.impl("conv1x1_positions_int8", conv1x1_positions_int8);
  m.impl("shortcut_int8", shortcut_int8);
  m.impl("conv3x3_patches_int8", conv3x3_patches_int8);
  m.impl("conv1x1_add_patches_int8_", conv1x1_add_patches_int8_);
  m.impl("patch_mask_int8", patch_mask_int8);
  m.impl("quantize", quantize);
  m.impl("dequantize", dequantize);
}

}  // namespace
}  // namespace laud
