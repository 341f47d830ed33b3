// RowGemm on each sample's own channels.
#pragma once
#include "../common/arguments.h"
#include "row_tasks.h"

namespace laud {

// Channels as the kernels read them: int32 (samples, groups) and (samples).
struct ChannelList {
  const int32_t* index;
  const int32_t* count;
  int64_t groups, group_size;

  int64_t channels(int64_t sample) const { return count[sample] * group_size; }
  const int32_t* of(int64_t sample) const { return index + sample * groups; }
  // Channel k of the active ones, of any sample.
  int32_t channel(int64_t sample, int64_t k) const {
    return of(sample)[k / group_size] * group_size + k % group_size;
  }
};

inline ChannelList list_of(const Channels& channels) {
  return {channels.index.const_data_ptr<int32_t>(), channels.count.const_data_ptr<int32_t>(),
          channels.index.size(1), channels.group_size};
}

// Rows [first, last) that belong to one sample.
struct SampleRows {
  int64_t sample, first, last;
};

// Which of a convolution's channels are picked.
enum class Picks { kOutputs, kBoth, kInputs };

// Inputs are picked as many at once as are multiplied at once, which take as much memory as
// a sum does: a unit.
template <typename T>
using Unit = typename RowTypes<T>::Sum;

// Unit k of a sample's active channels.
template <typename T>
int32_t unit_of(const ChannelList& channels, int64_t sample, int64_t k) {
  constexpr int64_t step = RowTypes<T>::step;
  static_assert(sizeof(Unit<T>) == step * sizeof(T));
  return channels.channel(sample, k * step) / step;
}

// One panel of a sample's weights, sliced out of a matrix (taps * inputs, outputs) of units.
template <typename T>
class PanelSlice {
 public:
  PanelSlice(const ChannelList& channels, int64_t sample, int64_t column, int64_t columns)
      : columns_(columns), padded_(round_up(columns, row_gemm<T>().vector)) {
    // Whole groups are copied at once where a panel holds whole groups.
    size_ = column % channels.group_size || columns % channels.group_size ? 1 : channels.group_size;
    for (int64_t c = 0; c < columns; c += size_)
      from_.push_back(channels.channel(sample, column + c) / size_);
  }
  int64_t padded() const { return padded_; }
  void row(const Unit<T>* weights, Unit<T>* to) const {
    row_gemm<Unit<T>>().pick(weights, from_.data(), from_.size(), size_, to);
    for (int64_t c = columns_; c < padded_; c++) to[c] = 0;
  }

 private:
  int64_t columns_, padded_, size_;
  std::vector<int32_t> from_;
};

// `weights` is the matrix whose columns are picked.
template <typename T>
void run_sliced(RowGemm<T> g, const ChannelList& channels, int64_t sample, bool picks_inputs,
                const T* weights, const Unit<T>* bias, int64_t inputs, int64_t outputs,
                int64_t column, int64_t last_column, AlignedRows<Unit<T>>& scratch) {
  const auto& kernels = row_gemm<T>();
  constexpr int64_t step = RowTypes<T>::step;
  const auto* units = reinterpret_cast<const Unit<T>*>(weights);
  g.depth = picks_inputs ? channels.channels(sample) : inputs;
  const int64_t rows = ceil_div(g.depth, step), all_rows = ceil_div(inputs, step);
  g.packed_depth = g.taps * rows * step;
  for (; column < last_column; column += kernels.panel) {
    const PanelSlice<T> slice(channels, sample, column,
                              std::min(kernels.panel, last_column - column));
    Unit<T>* const own_bias = scratch.of(slice.padded() * (1 + g.taps * rows));
    slice.row(bias, own_bias);
    Unit<T>* to = own_bias + slice.padded();
    g.packed = reinterpret_cast<const T*>(to);
    for (int64_t t = 0; t < g.taps; t++)
      for (int64_t k = 0; k < rows; k++, to += slice.padded())
        slice.row(units + (t * all_rows + (picks_inputs ? unit_of<T>(channels, sample, k) : k)) *
                              outputs, to);
    g.bias = own_bias;
    g.columns = std::min(kernels.panel, last_column - column);
    g.out_offset = column;
    kernels.run(g);
  }
}

// Run the rows of every sample on its own channels; no groups. For kInputs `weights` is packed
// as `layout`, else it is the matrix that `run_sliced` takes, and `bias` with it.
// `shifts` is null or, for kInputs, (samples, outputs) that are added to the bias.
template <typename T, typename Fill>
void run_channel_rows(const PackedLayout& layout, const T* weights, const Unit<T>* bias,
                      const ChannelList& channels, Picks picks,
                      const std::vector<SampleRows>& parts, bool relu, bool adds,
                      const Unit<T>* shifts, const Fill& fill) {
  if (parts.empty()) return;
  const auto& kernels = row_gemm<T>();
  // As many tasks in every sample as keep all threads busy.
  const int64_t share = ceil_div(2 * at::get_num_threads(), parts.size());
  at::parallel_for(0, parts.size() * share, 1, [&](int64_t begin, int64_t end) {
    RowAddresses<T> addresses;
    AlignedRows<Unit<T>> scratch;
    std::vector<Unit<T>> shifted;
    std::vector<int32_t> picked;
    for (int64_t task = begin; task < end; task++) {
      const SampleRows& part = parts[task / share];
      const int64_t columns = picks == Picks::kInputs ? layout.outputs
                                                      : channels.channels(part.sample);
      // Few rows are shared by columns, since every task slices the weights it needs.
      constexpr int64_t kManyRows = 256;
      const int64_t rows = part.last - part.first, panels = ceil_div(columns, kernels.panel);
      const bool by_rows = rows >= kManyRows * share || panels < share;
      const int64_t step = by_rows ? round_up(ceil_div(rows, share), kernels.rows)
                                   : ceil_div(panels, share) * kernels.panel;
      const int64_t at = task % share * step, end_at = std::min(at + step, by_rows ? rows : columns);
      if (at >= end_at) continue;
      RowGemm<T> g;
      g.relu = relu;
      g.taps = layout.taps;
      addresses.set(g, part.first + (by_rows ? at : 0), by_rows ? part.first + end_at : part.last,
                    adds, fill);
      const int64_t column = by_rows ? 0 : at, last_column = by_rows ? columns : end_at;
      if (picks == Picks::kInputs) {
        set_block(g, layout, 0, weights);
        g.depth = channels.channels(part.sample);
        picked.resize(g.depth / RowTypes<T>::step);
        for (size_t k = 0; k < picked.size(); k++)
          picked[k] = unit_of<T>(channels, part.sample, k);
        g.picked = picked.data();
        if (shifts) {
          shifted.assign(g.bias, g.bias + round_up(g.columns, kernels.vector));
          const Unit<T>* own = shifts + part.sample * g.columns;
          for (int64_t c = 0; c < g.columns; c++) shifted[c] += own[c];
          g.bias = shifted.data();
        }
        keep_columns(g, column, last_column);
        kernels.run(g);
      } else {
        run_sliced(g, channels, part.sample, picks == Picks::kBoth, weights, bias, layout.inputs,
                   layout.outputs, column, last_column, scratch);
      }
    }
  });
}

// Run rows of one sample on its own channels of a grouped convolution that has as many outputs
// as inputs. A block computes all its outputs from its active inputs: a vector is no faster for
// a part of it. Blocks without an active channel cost nothing.
template <typename T>
void run_blocks(RowGemm<T> g, const PackedLayout& layout, const T* packed,
                const ChannelList& channels, int64_t sample, std::vector<Unit<T>>& scratch) {
  const auto& kernels = row_gemm<T>();
  constexpr int64_t step = RowTypes<T>::step;
  const int64_t active = channels.channels(sample) / step;
  const int64_t width = round_up(layout.block_outputs, kernels.vector) / step;
  scratch.resize(g.rows * width);
  std::vector<T*> whole(g.rows);
  for (int64_t r = 0; r < g.rows; r++)
    whole[r] = reinterpret_cast<T*>(scratch.data() + r * width);
  T* const* out = g.out;
  std::vector<int32_t> picked, kept;
  for (int64_t k = 0; k < active;) {
    const int64_t first = k, block = unit_of<T>(channels, sample, k) * step / layout.block_inputs;
    const int64_t start = block * layout.block_inputs / step;
    const int64_t last = start + layout.inputs_of(block) / step;
    picked.clear();
    for (; k < active && unit_of<T>(channels, sample, k) < last; k++)
      picked.push_back(unit_of<T>(channels, sample, k) - start);
    set_block(g, layout, block, packed);
    g.in_offset = first * step;
    g.depth = (k - first) * step;
    const bool all = k - first == last - start;
    g.picked = all ? nullptr : picked.data();
    g.out = all ? out : whole.data();
    g.out_offset = all ? first * step : 0;
    kernels.run(g);
    if (all) continue;
    // Whole channel groups are kept at once where they start with the block.
    const int64_t size = layout.block_inputs % channels.group_size || (k - first) * step % channels.group_size
                             ? 1 : channels.group_size / step;
    kept.clear();
    for (size_t i = 0; i < picked.size(); i += size) kept.push_back(picked[i] / size);
    for (int64_t r = 0; r < g.rows; r++)
      row_gemm<Unit<T>>().pick(reinterpret_cast<const Unit<T>*>(whole[r]), kept.data(),
                               kept.size(), size,
                               reinterpret_cast<Unit<T>*>(out[r] + first * step));
  }
}

// The same for every sample.
template <typename T, typename Fill>
void run_channel_blocks(const PackedLayout& layout, const T* packed, const ChannelList& channels,
                        const std::vector<SampleRows>& parts, bool relu, const Fill& fill) {
  constexpr int64_t kMostRows = 96;  // whose addresses stay in the first-level cache
  struct Chunk { int64_t sample, first, last; };
  std::vector<Chunk> chunks;
  for (const SampleRows& part : parts) {
    const int64_t rows = part.last - part.first;
    int64_t share = ceil_div(rows, kMostRows);
    if (int64_t(parts.size()) < at::get_num_threads()) share = round_up(share, at::get_num_threads());
    const int64_t size = round_up(ceil_div(rows, share), row_gemm<T>().rows);
    for (int64_t first = part.first; first < part.last; first += size)
      chunks.push_back({part.sample, first, std::min(first + size, part.last)});
  }
  at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    RowAddresses<T> addresses;
    std::vector<Unit<T>> scratch;
    for (int64_t i = begin; i < end; i++) {
      RowGemm<T> g;
      g.relu = relu;
      g.taps = layout.taps;
      addresses.set(g, chunks[i].first, chunks[i].last, false, fill);
      run_blocks(g, layout, packed, channels, chunks[i].sample, scratch);
    }
  });
}

}  // namespace laud
