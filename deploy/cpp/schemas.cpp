// The operations' schemas, for programs without Python; the same as in ops/*.py.
#include <torch/library.h>

TORCH_LIBRARY(laud_mm, m) {
  m.def(
      "compact(Tensor mask) -> (Tensor, Tensor)");
  m.def(
      "halo_positions(Tensor index, Tensor count, SymInt samples, SymInt height, SymInt "
      "width, int granularity, int stride=1, int dilation=1) -> (Tensor, Tensor)");
  m.def(
      "excite_patches_(Tensor(a!) rows, Tensor index, Tensor count, SymInt height, SymInt "
      "width, int granularity, Tensor weight1, Tensor bias1, Tensor weight2, Tensor "
      "bias2, Tensor? channel_index=None, Tensor? channel_count=None, int group_size=1) "
      "-> ()");
  m.def(
      "pack_conv(Tensor weight, Tensor bias, int groups=1) -> Tensor");
  m.def(
      "pack_winograd(Tensor weight, Tensor bias) -> Tensor");
  m.def(
      "conv1x1_positions(Tensor x, Tensor? index, Tensor? count, Tensor weight, Tensor "
      "bias, int stride=1, bool relu=True, Tensor? channel_index=None, Tensor? "
      "channel_count=None, int group_size=1, Tensor? packed=None, int granularity=1) -> "
      "Tensor");
  m.def(
      "conv1x1_shortcut(Tensor x, Tensor active, Tensor weight, Tensor bias, int stride, "
      "int granularity, bool sums) -> (Tensor, Tensor)");
  m.def(
      "conv3x3_patches(Tensor y, Tensor index, Tensor count, Tensor weight, Tensor bias, "
      "int granularity, int stride=1, int dilation=1, int groups=1, Tensor? "
      "channel_index=None, Tensor? channel_count=None, int group_size=1, Tensor? "
      "packed=None, bool winograd=False, Tensor? shifts=None) -> Tensor");
  m.def(
      "conv1x1_add_patches_(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, "
      "Tensor count, Tensor weight, Tensor bias, int granularity, Tensor? "
      "channel_index=None, Tensor? channel_count=None, int group_size=1, Tensor? "
      "packed=None, Tensor? shifts=None, Tensor(b!)? pieces=None) -> ()");
  m.def(
      "patch_mask(Tensor x, Tensor weight, Tensor bias, int window) -> Tensor");
  m.def(
      "sums_mask(Tensor sums, Tensor? whole, Tensor listed, Tensor index, Tensor count, "
      "Tensor weight, Tensor bias, SymInt area) -> (Tensor, Tensor)");
  m.def(
      "position_means(Tensor x) -> Tensor");
  m.def(
      "masker_conv1x1(Tensor x, Tensor weight, Tensor bias, Tensor mask_weight, Tensor "
      "mask_bias, int window, Tensor? packed=None) -> (Tensor, Tensor)");
  m.def(
      "pack_int8(Tensor weight, Tensor bias, Tensor multiplier) -> Tensor");
  m.def(
      "conv1x1_positions_int8(Tensor x, Tensor? index, Tensor? count, Tensor weight, Tensor "
      "bias, Tensor multiplier, int stride=1, Tensor? packed=None) -> Tensor");
  m.def(
      "shortcut_int8(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, int stride=1, "
      "Tensor? packed=None) -> (Tensor, Tensor)");
  m.def(
      "conv3x3_patches_int8(Tensor y, Tensor index, Tensor count, Tensor weight, Tensor bias, "
      "Tensor multiplier, int granularity, int stride=1, int dilation=1, Tensor? packed=None) "
      "-> Tensor");
  m.def(
      "conv1x1_add_patches_int8_(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, "
      "Tensor count, Tensor weight, Tensor bias, Tensor multiplier, int granularity, Tensor? "
      "packed=None) -> ()");
  m.def(
      "patch_mask_int8(Tensor x, Tensor weight, Tensor bias, int window) -> Tensor");
  m.def(
      "stem_int8(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, float scale, int zero, "
      "int stride, bool pool, Tensor? packed=None) -> Tensor");
  m.def(
      "quantize(Tensor x, float scale) -> Tensor");
  m.def(
      "dequantize(Tensor x, float scale) -> Tensor");
  m.def(
      "patchify(Tensor x, Tensor weight, Tensor bias, Tensor? packed=None) -> Tensor");
  m.def(
      "depthwise_norm_patches(Tensor x, Tensor index, Tensor count, Tensor taps, Tensor bias, "
      "int granularity, float eps) -> Tensor");
  m.def(
      "mlp_add_patches_(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, Tensor count, "
      "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, int granularity, Tensor? "
      "packed1=None, Tensor? packed2=None) -> ()");
  m.def(
      "stem_conv(Tensor x, Tensor weight, Tensor bias, int stride, bool pool, Tensor? "
      "packed=None) -> Tensor");
  m.def(
      "conv_map(Tensor x, Tensor weight, Tensor bias, int stride=1, int dilation=1, int "
      "groups=1) -> Tensor");
  m.def(
      "max_pool(Tensor x, int kernel_size, int stride) -> Tensor");
  m.def(
      "average_pool(Tensor x, int kernel_size) -> Tensor");
  m.def(
      "rectify_(Tensor(a!) y) -> ()");
  m.def(
      "gather_tokens(Tensor x, Tensor index) -> Tensor");
  m.def(
      "scatter_add_tokens_(Tensor(a!) out, Tensor index, Tensor rows) -> ()");
}
