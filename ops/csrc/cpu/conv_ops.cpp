// The three convolutions of a bottleneck, on listed units only (CPU).
#include <ATen/Dispatch.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "channel_rows.h"
#include "tensors.h"

namespace laud {
namespace {

Tensor pack_conv(const Tensor& weight, const Tensor& bias, int64_t groups) {
  TORCH_CHECK(weight.dim() == 4, "weight must have 4 dimensions, got shape ", weight.sizes());
  check_positive("groups", groups);
  check_shape("bias", bias, {weight.size(0)});
  if (multiplies_bfloat16(weight)) return pack_as<Bfloat16>(weight, bias, groups);
  return compute_type(weight) == at::kDouble ? pack_as<double>(weight, bias, groups)
                                             : pack_as<float>(weight, bias, groups);
}

Tensor pack_winograd(const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
              "weight must be (out, in, 3, 3), got shape ", weight.sizes());
  check_shape("bias", bias, {weight.size(0)});
  return compute_type(weight) == at::kDouble ? pack_winograd_as<double>(weight, bias)
                                             : pack_winograd_as<float>(weight, bias);
}

// Cut an ascending list of units (null: all) where the sample changes; each is `rows` rows.
std::vector<SampleRows> by_sample(const int32_t* units, int64_t listed, int64_t samples,
                                  int64_t units_per_sample, int64_t rows) {
  std::vector<SampleRows> parts;
  int64_t first = 0;
  for (int64_t n = 0; n < samples; n++) {
    const int64_t next = (n + 1) * units_per_sample;
    const int64_t last =
        units ? std::lower_bound(units + first, units + listed, next) - units : next;
    if (last > first) parts.push_back({n, first * rows, last * rows});
    first = last;
  }
  return parts;
}

template <typename T, typename Fill>
void run_conv(const Weights<T>& weights, const Channels& channels, Picks picks,
              const int32_t* units, int64_t listed, int64_t samples, int64_t units_per_sample,
              int64_t unit_rows, bool relu, bool adds, const Unit<T>* shifts,
              const Fill& fill) {
  if (!channels.given())
    return run_rows<T>(weights.layout, weights.data(), listed * unit_rows, relu, adds, fill);
  const auto parts = by_sample(units, listed, samples, units_per_sample, unit_rows);
  if (weights.layout.groups() > 1)
    return run_channel_blocks<T>(weights.layout, weights.data(), list_of(channels), parts, relu,
                                 fill);
  run_channel_rows<T>(weights.layout, weights.data(), data_of<Unit<T>>(weights.bias),
                      list_of(channels), picks, parts, relu, adds, shifts, fill);
}

// Whether a convolution multiplies bfloat16 as it is. Channels are picked in pairs then.
bool runs_bfloat16(const Tensor& x, const Channels& channels, int64_t group_size,
                   int64_t groups = 1) {
  return multiplies_bfloat16(x) &&
         (!channels.given() ||
          (group_size % 2 == 0 && (groups == 1 || x.size(1) / groups % 2 == 0)));
}

template <typename T>
void conv1x1_positions_as(const Tensor& x, const OptionalTensor& index, int64_t listed,
                          const Weights<T>& weights, int64_t stride, bool relu,
                          const Channels& channels, Tensor& y) {
  const MapSize in = size_of(x), out = size_of(y);
  const int64_t depth = x.size(1), width = y.size(1);
  const T* from = data_of<T>(x);
  T* to = data_to<T>(y);
  const int32_t* positions = index ? index->const_data_ptr<int32_t>() : nullptr;
  run_conv<T>(weights, channels, Picks::kOutputs, positions, listed, out.samples,
              out.height * out.width, 1, relu, false, nullptr,
              [&](int64_t first, int64_t last, RowAddresses<T>& rows) {
                for (int64_t r = first; r < last; r++) {
                  int64_t row = positions ? positions[r] : r;
                  rows.out[r - first] = to + row * width;
                  if (stride > 1) {
                    const Position p = out.at(row);
                    row = in.row(p.sample, p.y * stride, p.x * stride);
                  }
                  rows.in[r - first] = from + row * depth;
                }
              });
}

// Which of three taps lie inside the map, as bits.
inline int64_t taps_inside(int64_t at, int64_t size, const Window& window) {
  int64_t bits = 0;
  for (int64_t t = 0; t < 3; t++) {
    const int64_t read = at * window.stride + (t - 1) * window.dilation;
    if (read >= 0 && read < size) bits |= int64_t{1} << t;
  }
  return bits;
}

// What taps add, summed over those inside the map: a row of a sample's active channels for each
// set of taps that occurs, lines by columns.
template <typename T>
class Shifts {
 public:
  Shifts(const Unit<T>* shifts, const ChannelList& channels, const MapSize& in,
         const MapSize& out, const Window& window)
      : in_(in), window_(window), width_(channels.groups * channels.group_size),
        rows_(in.samples * 64 * width_) {
    bool lines[8] = {}, columns[8] = {};
    for (int64_t y = 0; y < out.height; y++) lines[taps_inside(y, in.height, window)] = true;
    for (int64_t x = 0; x < out.width; x++) columns[taps_inside(x, in.width, window)] = true;
    at::parallel_for(0, in.samples * 64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t sample = i / 64, line = i % 64 / 8, column = i % 8;
        if (!lines[line] || !columns[column]) continue;
        const int64_t active = channels.channels(sample);
        for (int64_t k = 0; k < active; k++) {
          const Unit<T>* own = shifts + (sample * width_ + channels.channel(sample, k)) * 9;
          Unit<T> sum = 0;
          for (int64_t t = 0; t < 9; t++)
            if (line >> t / 3 & 1 && column >> t % 3 & 1) sum += own[t];
          narrow(sum, rows_[i * width_ + k]);
        }
      }
    });
  }
  const T* at(const Position& p) const {
    const int64_t set = taps_inside(p.y, in_.height, window_) * 8 +
                        taps_inside(p.x, in_.width, window_);
    return rows_.data() + (p.sample * 64 + set) * width_;
  }
  const T* any(int64_t sample) const { return rows_.data() + sample * 64 * width_; }

 private:
  static void narrow(Unit<T> from, T& to) {
    if constexpr (std::is_same_v<T, Bfloat16>) to.bits = c10::BFloat16(from).x;
    else to = from;
  }
  MapSize in_;
  Window window_;
  int64_t width_;
  std::vector<T> rows_;
};

// Copies lines [first, last) of a patch's window, its border included, zeros beyond the map.
template <typename T>
void copy_window(const T* from, const MapSize& in, int64_t depth, const Patch& patch,
                 int64_t dilation, int64_t first, int64_t last, int64_t pitch, T* to) {
  const int64_t x = patch.first.x - dilation;
  const int64_t left = std::max(-x, int64_t(0)), right = std::min(pitch, in.width - x);
  for (int64_t line = first; line < last; line++, to += pitch * depth) {
    const int64_t y = patch.first.y + line - dilation;
    if (y < 0 || y >= in.height || left >= right) {
      std::fill_n(to, pitch * depth, T{});
      continue;
    }
    std::fill_n(to, left * depth, T{});
    std::copy_n(from + in.row(patch.first.sample, y, x + left) * depth, (right - left) * depth,
                to + left * depth);
    std::fill_n(to + right * depth, (pitch - right) * depth, T{});
  }
}

// conv3x3 on wide patches, for tiles of many rows: each patch's window is copied once, so that
// rows lie at equal distances for every tap, also from line to line. The positions between two
// lines are computed in vain. Tall patches are cut; small ones share a task, as each task reads
// all weights.
template <typename T>
void conv3x3_windows_as(const Tensor& y, const Tensor& index, int64_t listed,
                        const PatchGrid& grid, int64_t dilation, const Weights<T>& weights,
                        Tensor& rows_out) {
  constexpr int64_t kMostRows = 224;
  const auto& kernels = row_gemm<T>();
  const MapSize in = size_of(y);
  const int64_t depth = y.size(1), width = rows_out.size(2), threads = at::get_num_threads();
  const int64_t pitch = grid.patch_width + 2 * dilation;
  const int64_t lines =
      ceil_div(grid.patch_height, ceil_div(grid.patch_height * pitch, kMostRows));
  const int64_t cuts = ceil_div(grid.patch_height, lines), pieces = listed * cuts;
  // Of a piece; the next one begins with a tile.
  const int64_t piece_rows = round_up((lines - 1) * pitch + grid.patch_width, kernels.rows);
  const int64_t window_rows =
      std::max((lines + 2 * dilation) * pitch, piece_rows + 2 * dilation * (pitch + 1));
  const int64_t share = std::clamp(ceil_div(pieces, threads), int64_t(1),
                                   std::max(kMostRows / piece_rows, int64_t(1)));
  const int64_t chunks = ceil_div(pieces, share);
  const int64_t panels = ceil_div(width, kernels.panel);
  const int64_t chunk_panels = ceil_div(panels, chunks % threads ? std::min(threads, panels) : 1);
  const int64_t parts = ceil_div(panels, chunk_panels);
  const T* from = data_of<T>(y);
  T* to = data_to<T>(rows_out);
  const int32_t* patches = index.const_data_ptr<int32_t>();
  at::parallel_for(0, chunks * parts, 1, [&](int64_t begin, int64_t end) {
    AlignedRows<T> memory;
    T* const windows = memory.of(share * window_rows * depth);
    std::vector<T> unused(width);
    RowAddresses<T> addresses;
    for (int64_t task = begin; task < end; task++) {
      const int64_t start = task / parts * share, count = std::min(share, pieces - start);
      const auto lines_of = [&](int64_t piece) {
        const int64_t first = (start + piece) % cuts * lines;
        return std::pair{first, std::min(first + lines, grid.patch_height)};
      };
      if (task == begin || task % parts == 0)
        for (int64_t piece = 0; piece < count; piece++) {
          const auto [first, last] = lines_of(piece);
          copy_window(from, in, depth, grid.at(patches[(start + piece) / cuts]), dilation, first,
                      last + 2 * dilation, pitch, windows + piece * window_rows * depth);
        }
      RowGemm<T> g;
      g.relu = true;
      set_block(g, weights.layout, 0, weights.data());
      addresses.set(g, 0, count * piece_rows, false,
                    [&](int64_t, int64_t last, RowAddresses<T>& rows) {
                      for (int64_t r = 0; r < last; r++) {
                        const int64_t piece = r / piece_rows, row = r % piece_rows;
                        const auto [first, end] = lines_of(piece);
                        const int64_t line = first + row / pitch, x = row % pitch;
                        const int64_t patch = (start + piece) / cuts;
                        rows.out[r] = line < end && x < grid.patch_width
                                          ? to + (patch * grid.area() + line * grid.patch_width +
                                                  x) * width
                                          : unused.data();
                        const T* const window = windows + (piece * window_rows + row) * depth;
                        for (int64_t t = 0; t < 9; t++)
                          rows.in[r * 9 + t] =
                              window + (t / 3 * pitch + t % 3) * dilation * depth;
                      }
                    });
      const int64_t column = task % parts * chunk_panels * kernels.panel;
      keep_columns(g, column, std::min(width, column + chunk_panels * kernels.panel));
      kernels.run(g);
    }
  });
}

template <typename T>
void conv3x3_patches_as(const Tensor& y, const Tensor& index, int64_t listed,
                        const PatchGrid& grid, const Window& window, const Weights<T>& weights,
                        const Channels& channels, const OptionalTensor& shifts_,
                        Tensor& rows_out) {
  constexpr int64_t kTall = 16, kWide = 7;
  if (row_gemm<T>().rows >= kTall && grid.patch_width >= kWide && window.stride == 1 &&
      weights.layout.groups() == 1 && !channels.given())
    return conv3x3_windows_as(y, index, listed, grid, window.dilation, weights, rows_out);
  const MapSize in = size_of(y);
  const int64_t depth = y.size(1), width = rows_out.size(2);
  const std::vector<T> zeros(depth, T{});
  const T* from = data_of<T>(y);
  T* to = data_to<T>(rows_out);
  const int32_t* patches = index.const_data_ptr<int32_t>();
  std::optional<Shifts<T>> shifts;
  if (shifts_) {
    const Tensor own = shifts_->to(scalar_type<Unit<T>>()).contiguous();
    shifts.emplace(data_of<Unit<T>>(own), list_of(channels), in, grid.map, window);
  }
  run_conv<T>(weights, channels, Picks::kBoth, patches, listed, in.samples,
              grid.rows() * grid.columns(), grid.area(), true, shifts.has_value(), nullptr,
              [&](int64_t first, int64_t last, RowAddresses<T>& rows) {
                visit_rows(grid, patches, first, last,
                           [&](int64_t row, const Patch& patch, int64_t py, int64_t px) {
                  rows.out[row - first] = to + row * width;
                  const T** taps = &rows.in[(row - first) * 9];
                  if (py >= patch.height || px >= patch.width) {
                    std::fill(taps, taps + 9, zeros.data());
                    if (shifts) rows.add[row - first] = shifts->any(patch.first.sample);
                    return;
                  }
                  const Position at{patch.first.sample, patch.first.y + py, patch.first.x + px};
                  if (shifts) rows.add[row - first] = shifts->at(at);
                  for (int64_t t = 0; t < 9; t++) {
                    const int64_t read = input_row(in, window, at, t / 3, t % 3);
                    taps[t] = read < 0 ? zeros.data() : from + read * depth;
                  }
                });
              });
}

template <typename T>
void winograd_patches_as(const Tensor& y, const Tensor& index, int64_t listed,
                         const PatchGrid& grid, const Tensor& packed, Tensor& rows_out) {
  const auto layout =
      PackedLayout::of(1, y.size(1), rows_out.size(2), 1, row_gemm<T>().vector);
  check_packed(packed, y.scalar_type(), winograd_size(layout, row_gemm<T>().vector),
               "pack_winograd");
  const std::vector<T> zeros(layout.inputs, T(0));
  const WinogradTiles<T> tiles{grid, index.const_data_ptr<int32_t>(), y.const_data_ptr<T>(),
                               rows_out.mutable_data_ptr<T>(), layout.inputs, layout.outputs,
                               zeros.data()};
  run_winograd(layout, packed.const_data_ptr<T>(), tiles, listed * tiles.per_patch());
}

template <typename T>
void conv1x1_add_patches_as(Tensor& out, const Tensor& identity, const Tensor& rows_in,
                            const Tensor& index, int64_t listed, const PatchGrid& grid,
                            const Weights<T>& weights, const Channels& channels,
                            const OptionalTensor& shifts_) {
  const Tensor shifts =
      shifts_ ? shifts_->to(scalar_type<Unit<T>>()).contiguous() : Tensor();
  const int64_t depth = rows_in.size(2), width = out.size(1);
  const T* from = data_of<T>(rows_in);
  const T* base = data_of<T>(identity);
  T* to = data_to<T>(out);
  const int32_t* patches = index.const_data_ptr<int32_t>();
  run_conv<T>(weights, channels, Picks::kInputs, patches, listed, grid.map.samples,
              grid.rows() * grid.columns(), grid.area(), true, true,
              shifts_ ? data_of<Unit<T>>(shifts) : nullptr,
              [&](int64_t first, int64_t last, RowAddresses<T>& rows) {
                rows.unused.resize(width);
                visit_rows(grid, patches, first, last,
                           [&](int64_t row, const Patch& patch, int64_t py, int64_t px) {
                  const int64_t r = row - first;
                  rows.in[r] = from + row * depth;
                  if (py >= patch.height || px >= patch.width) {
                    rows.add[r] = rows.out[r] = rows.unused.data();
                    return;
                  }
                  const int64_t at =
                      grid.map.row(patch.first.sample, patch.first.y + py, patch.first.x + px);
                  rows.add[r] = base + at * width;
                  rows.out[r] = to + at * width;
                });
              });
}

// The positions of listed patches inside the map, and how many they are.
std::pair<Tensor, int64_t> positions_of(const Tensor& patches, int64_t listed,
                                        const PatchGrid& grid) {
  Tensor positions = at::empty({listed * grid.area()}, patches.options());
  int32_t *to = positions.mutable_data_ptr<int32_t>(), *const begin = to;
  for (int64_t i = 0; i < listed; i++) {
    const Patch patch = grid.at(patches.const_data_ptr<int32_t>()[i]);
    for (int64_t y = 0; y < patch.height; y++)
      for (int64_t x = 0; x < patch.width; x++)
        *to++ = int32_t(grid.map.row(patch.first.sample, patch.first.y + y, patch.first.x + x));
  }
  return {positions, to - begin};
}

Tensor conv1x1_positions(const Tensor& x, const OptionalTensor& listed_units,
                         const OptionalTensor& count, const Tensor& weight, const Tensor& bias,
                         int64_t stride, bool relu, const OptionalTensor& channel_index,
                         const OptionalTensor& channel_count, int64_t group_size,
                         const OptionalTensor& packed, int64_t granularity) {
  auto call = check_positions(x, listed_units, count, weight, bias, stride, channel_index,
                              channel_count, group_size, granularity);
  OptionalTensor index = listed_units;
  if (index && granularity > 1)
    std::tie(index, call.listed) = positions_of(*index, call.listed, call.grid);
  const bool slices = call.channels.given();
  if (runs_bfloat16(x, call.channels, group_size)) {
    Tensor y = empty_map(x, call.out, weight.size(0));
    conv1x1_positions_as<Bfloat16>(x, index, call.listed, {weight, bias, 1, slices, packed},
                                   stride, relu, call.channels, y);
    return y;
  }
  const auto type = compute_type(x);
  const Tensor from = x.to(type);
  Tensor y = empty_map(from, call.out, weight.size(0));
  AT_DISPATCH_FLOATING_TYPES(type, "conv1x1_positions", [&] {
    const Weights<scalar_t> weights(weight, bias, 1, slices, packed);
    conv1x1_positions_as(from, index, call.listed, weights, stride, relu, call.channels, y);
  });
  return y.to(x.scalar_type());
}

Tensor conv3x3_patches(const Tensor& y, const Tensor& index, const Tensor& count,
                       const Tensor& weight, const Tensor& bias, int64_t granularity,
                       int64_t stride, int64_t dilation, int64_t groups,
                       const OptionalTensor& channel_index, const OptionalTensor& channel_count,
                       int64_t group_size, const OptionalTensor& packed, bool winograd,
                       const OptionalTensor& shifts) {
  const auto call =
      check_patches(y, index, count, weight, bias, granularity, stride, dilation, groups,
                    channel_index, channel_count, group_size);
  TORCH_CHECK(!winograd || (stride == 1 && dilation == 1 && groups == 1 && packed &&
                            !call.channels.given()),
              "winograd needs packed weights, stride, dilation and groups of 1 and all channels, "
              "got stride ", stride, ", dilation ", dilation, ", groups ", groups,
              packed ? "" : ", no packed", call.channels.given() ? ", channel_index" : "");
  const bool slices = call.channels.given() && groups == 1;
  if (shifts) {
    TORCH_CHECK(slices, "shifts needs channel_index and groups of 1, got groups ", groups,
                call.channels.given() ? "" : " and no channel_index");
    check_shape("shifts", *shifts, {y.size(0), weight.size(0), 9});
  }
  if (runs_bfloat16(y, call.channels, group_size, groups) && !winograd) {
    Tensor rows = at::empty({index.numel(), call.grid.area(), weight.size(0)},
                            y.options().memory_format(at::MemoryFormat::Contiguous));
    conv3x3_patches_as<Bfloat16>(y, index, call.listed, call.grid, {stride, dilation},
                                 {weight, bias, groups, slices, packed}, call.channels, shifts,
                                 rows);
    return rows;
  }
  const auto type = compute_type(y);
  const Tensor from = y.to(type);
  Tensor rows = at::empty({index.numel(), call.grid.area(), weight.size(0)}, from.options());
  AT_DISPATCH_FLOATING_TYPES(type, "conv3x3_patches", [&] {
    if (winograd)
      return winograd_patches_as<scalar_t>(from, index, call.listed, call.grid, *packed, rows);
    const Weights<scalar_t> weights(weight, bias, groups, slices, packed);
    conv3x3_patches_as(from, index, call.listed, call.grid, {stride, dilation}, weights,
                       call.channels, shifts, rows);
  });
  return rows.to(y.scalar_type());
}

void conv1x1_add_patches_(Tensor& out, const Tensor& identity, const Tensor& rows,
                          const Tensor& index, const Tensor& count, const Tensor& weight,
                          const Tensor& bias, int64_t granularity,
                          const OptionalTensor& channel_index,
                          const OptionalTensor& channel_count, int64_t group_size,
                          const OptionalTensor& packed, const OptionalTensor& shifts,
                          const OptionalTensor& pieces) {
  TORCH_CHECK(!pieces, "pieces must be None on a CPU");
  const auto call =
      check_add_patches(out, identity, rows, index, count, weight, bias, granularity,
                        channel_index, channel_count, group_size);
  if (shifts) {
    TORCH_CHECK(call.channels.given(), "shifts needs channel_index");
    check_shape("shifts", *shifts, {out.size(0), weight.size(0)});
  }
  if (runs_bfloat16(rows, call.channels, group_size))
    return conv1x1_add_patches_as<Bfloat16>(out, identity.to(at::kBFloat16),
                                            rows.to(at::kBFloat16), index, call.listed, call.grid,
                                            {weight, bias, 1, false, packed}, call.channels,
                                            shifts);
  const auto type = compute_type(out);
  const bool same = type == out.scalar_type();
  const Tensor from = rows.to(type), base = identity.to(type);
  Tensor to = out.to(type);
  AT_DISPATCH_FLOATING_TYPES(type, "conv1x1_add_patches_", [&] {
    const Weights<scalar_t> weights(weight, bias, 1, false, packed);
    conv1x1_add_patches_as(to, base, from, index, call.listed, call.grid, weights, call.channels,
                           shifts);
  });
  if (!same) out.copy_(to);
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("pack_conv", pack_conv);
  m.impl("pack_winograd", pack_winograd);
  m.impl("conv1x1_positions", conv1x1_positions);
  m.impl("conv3x3_patches", conv3x3_patches);
  m.impl("conv1x1_add_patches_", conv1x1_add_patches_);
}

}  // namespace
}  // namespace laud
