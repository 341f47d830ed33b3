// Convolution weights and bias as RowGemm reads them.
//
// Narrow groups are merged until a vector is full (zeros between them), which makes
// blocks; each block holds its bias and then its panels, all zero-padded.
#pragma once
#include "row_gemm.h"

namespace laud {

struct PackedLayout {
  int64_t taps, inputs, outputs;              // of the whole convolution
  int64_t block_inputs, block_outputs;        // of one block, the last one may have fewer
  int64_t blocks, merged;                     // blocks, and groups in each
  int64_t group_inputs, group_outputs;
  int64_t step;                               // RowTypes::step

  static PackedLayout of(int64_t taps, int64_t inputs, int64_t outputs, int64_t groups,
                         int64_t vector, int64_t step = 1) {
    const int64_t in = inputs / groups, out = outputs / groups;
    const int64_t merged = groups == 1 || out >= vector ? 1 : vector / out;
    return {taps, inputs, outputs, in * merged, out * merged, (groups + merged - 1) / merged,
            merged, in, out, step};
  }
  int64_t inputs_of(int64_t block) const { return least(block_inputs, inputs - block * block_inputs); }
  int64_t outputs_of(int64_t block) const {
    return least(block_outputs, outputs - block * block_outputs);
  }
  int64_t block_size(int64_t vector) const {
    // A bias takes as many values as a step: it is twice as wide where a step is two.
    return round_up(block_outputs, vector) * (step + taps * padded(block_inputs));
  }
  int64_t groups() const { return inputs / group_inputs; }
  int64_t size(int64_t vector) const { return blocks * block_size(vector); }
  int64_t padded(int64_t depth) const { return (depth + step - 1) / step * step; }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// `weight` is (outputs, taps, inputs / groups), `to` is zeroed.
template <typename T>
void pack(const PackedLayout& layout, const T* weight,
          const typename RowTypes<T>::Sum* bias, T* to) {
  const auto& kernels = row_gemm<T>();
  const int64_t depth = layout.taps * layout.group_inputs;
  for (int64_t o = 0; o < layout.outputs; o++) {
    const int64_t block = o / layout.block_outputs, column = o % layout.block_outputs;
    const int64_t padded = round_up(layout.outputs_of(block), kernels.vector);
    T* at = to + block * layout.block_size(kernels.vector);
    reinterpret_cast<typename RowTypes<T>::Sum*>(at)[column] = bias[o];
    at += padded * layout.step;
    const int64_t panel = column / kernels.panel * kernels.panel;
    const int64_t width = padded - panel < kernels.panel ? padded - panel : kernels.panel;
    const int64_t inputs = layout.padded(layout.inputs_of(block));
    at += panel * layout.taps * inputs + (column - panel) * layout.step;
    const int64_t first = o % layout.block_outputs / layout.group_outputs * layout.group_inputs;
    for (int64_t d = 0; d < depth; d++) {
      const int64_t tap = d / layout.group_inputs, input = first + d % layout.group_inputs;
      const int64_t within = input % layout.step;
      at[(tap * inputs + input - within) * width + within] = weight[o * depth + d];
    }
  }
}

// The part of `g` that differs between blocks.
template <typename T>
void set_block(RowGemm<T>& g, const PackedLayout& layout, int64_t block, const T* packed) {
  const int64_t vector = row_gemm<T>().vector;
  g.taps = layout.taps;
  g.depth = layout.inputs_of(block);
  g.packed_depth = g.taps * layout.padded(g.depth);
  g.columns = layout.outputs_of(block);
  g.in_offset = block * layout.block_inputs;
  g.out_offset = block * layout.block_outputs;
  const T* first = packed + block * layout.block_size(vector);
  g.bias = reinterpret_cast<const typename RowTypes<T>::Sum*>(first);
  g.packed = first + round_up(g.columns, vector) * layout.step;
}

// Keep the columns [first, last) of `g`; `first` is a multiple of the panel.
template <typename T>
void keep_columns(RowGemm<T>& g, int64_t first, int64_t last) {
  g.bias += first;
  g.packed += first * g.packed_depth;
  g.out_offset += first;
  g.columns = last - first;
}

}  // namespace laud
