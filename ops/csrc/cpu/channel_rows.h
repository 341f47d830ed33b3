// RowGemm with the weights of each sample's own channels (no groups).
#pragma once
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

// Rows [first, last) that belong to one sample.
struct SampleRows {
  int64_t sample, first, last;
};

// Which of a convolution's channels are picked.
enum class Picks { kOutputs, kBoth, kInputs };

// One panel of a sample's weights, sliced out of a matrix (taps * inputs, outputs).
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
  void row(const T* weights, T* to) const {
    row_gemm<T>().pick(weights, from_.data(), from_.size(), size_, to);
    for (int64_t c = columns_; c < padded_; c++) to[c] = 0;
  }

 private:
  int64_t columns_, padded_, size_;
  std::vector<int32_t> from_;
};

// `weights` is the (taps * inputs, outputs) matrix whose columns are picked.
template <typename T>
void run_sliced(RowGemm<T> g, const ChannelList& channels, int64_t sample, bool picks_inputs,
                const T* weights, const T* bias, int64_t inputs, int64_t outputs, int64_t column,
                int64_t last_column, std::vector<T>& scratch) {
  const auto& kernels = row_gemm<T>();
  g.depth = picks_inputs ? channels.channels(sample) : inputs;
  g.packed_depth = g.taps * g.depth;
  for (; column < last_column; column += kernels.panel) {
    const PanelSlice<T> slice(channels, sample, column,
                              std::min(kernels.panel, last_column - column));
    scratch.resize(slice.padded() * (1 + g.packed_depth));
    slice.row(bias, scratch.data());
    T* to = scratch.data() + slice.padded();
    for (int64_t t = 0; t < g.taps; t++)
      for (int64_t k = 0; k < g.depth; k++, to += slice.padded())
        slice.row(weights + (t * inputs + (picks_inputs ? channels.channel(sample, k) : k)) * outputs,
                  to);
    g.bias = scratch.data();
    g.packed = scratch.data() + slice.padded();
    g.columns = std::min(kernels.panel, last_column - column);
    g.out_offset = column;
    kernels.run(g);
  }
}

// Run the rows of every sample on its own channels. For kInputs `weights` and `bias` are
// packed as `layout`, else weights is the (taps * inputs, outputs) matrix.
template <typename T, typename Fill>
void run_channel_rows(const PackedLayout& layout, const T* weights, const T* bias,
                      const ChannelList& channels, Picks picks,
                      const std::vector<SampleRows>& parts, bool relu, bool adds,
                      const Fill& fill) {
  if (parts.empty()) return;
  const auto& kernels = row_gemm<T>();
  // As many tasks in every sample as keep all threads busy.
  const int64_t share = ceil_div(2 * at::get_num_threads(), parts.size());
  at::parallel_for(0, parts.size() * share, 1, [&](int64_t begin, int64_t end) {
    RowAddresses<T> addresses;
    std::vector<T> scratch;
    std::vector<int32_t> picked;
    for (int64_t task = begin; task < end; task++) {
      const SampleRows& part = parts[task / share];
      const int64_t columns = picks == Picks::kInputs ? layout.outputs
                                                      : channels.channels(part.sample);
      // Few rows are shared by columns, since every task slices the weights it needs.
      constexpr int64_t kManyRows = 256;
      const int64_t rows = part.last - part.first, panels = ceil_div(columns, kernels.panel);
      const bool by_rows = rows >= kManyRows * share || panels < share;
      const int64_t step = by_rows ? round_up(ceil_div(rows, share), 6)
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
        picked.resize(g.depth);
        for (int64_t k = 0; k < g.depth; k++) picked[k] = channels.channel(part.sample, k);
        g.picked = picked.data();
        keep_columns(g, column, last_column);
        kernels.run(g);
      } else {
        run_sliced(g, channels, part.sample, picks == Picks::kBoth, weights, bias, layout.inputs,
                   layout.outputs, column, last_column, scratch);
      }
    }
  });
}

}  // namespace laud
