#include "arguments.h"

#include <ATen/ops/empty.h>

namespace laud {

void check_device(const char* name, const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK(tensor.device() == like.device(), name, " must be on ", like.device(), ", got ",
              tensor.device());
}

void check_same(const char* name, const Tensor& tensor, const Tensor& like) {
  check_device(name, tensor, like);
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(),
              " like the map, got ", tensor.scalar_type());
}

void check_floating(const char* name, const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  const bool known = type == at::kFloat || type == at::kHalf || type == at::kBFloat16 ||
                     (type == at::kDouble && tensor.is_cpu());
  TORCH_CHECK(known, name, " must be float32, float16 or bfloat16 (float64 on the CPU only), got ",
              type, " on ", tensor.device());
}

void check_map(const char* name, const Tensor& map) {
  TORCH_CHECK(map.dim() == 4, name, " must be a map (N, C, H, W), got shape ", map.sizes());
  TORCH_CHECK(map.size(1) > 0 && map.size(2) > 0 && map.size(3) > 0, name,
              " must have channels and positions, got shape ", map.sizes());
  check_floating(name, map);
  // A map of no images has whatever strides.
  TORCH_CHECK(map.size(0) == 0 || map.is_contiguous(at::MemoryFormat::ChannelsLast), name,
              " must be channels-last, got strides ", map.strides(), " of shape ", map.sizes());
}

void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
              tensor.sizes());
}

void check_positive(const char* name, int64_t value) {
  TORCH_CHECK(value >= 1, name, " must be a positive int, got ", value);
}

int64_t check_units(const Tensor& index, const Tensor& count, int64_t limit) {
  TORCH_CHECK(index.scalar_type() == at::kInt && index.dim() == 1 && index.is_contiguous(),
              "index must be a contiguous vector of int32, got ", index.scalar_type(),
              " of shape ", index.sizes());
  TORCH_CHECK(count.scalar_type() == at::kInt && count.numel() == 1,
              "count must be one int32, got ", count.scalar_type(), " of shape ", count.sizes());
  check_device("count", count, index);
  TORCH_CHECK(index.numel() <= limit, "index must list at most ", limit, " units, got ",
              index.numel());
  if (!index.is_cpu()) return -1;
  const int64_t listed = *count.const_data_ptr<int32_t>();
  TORCH_CHECK(listed >= 0 && listed <= index.numel(), "count must be from 0 to ", index.numel(),
              ", got ", listed);
  const int32_t* values = index.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < listed; i++)
    TORCH_CHECK(values[i] >= 0 && values[i] < limit, "index must have values from 0 to ",
                limit - 1, ", got ", values[i], " at ", i);
  return listed;
}

void check_conv(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t kernel,
                int64_t channels, int64_t groups) {
  check_positive("groups", groups);
  check_same("weight", weight, x);
  check_same("bias", bias, x);
  TORCH_CHECK(weight.dim() == 4, "weight must have 4 dimensions, got shape ", weight.sizes());
  TORCH_CHECK(channels % groups == 0 && weight.size(0) % groups == 0, "groups must divide ",
              channels, " inputs and ", weight.size(0), " outputs, got ", groups);
  check_shape("weight", weight, {weight.size(0), channels / groups, kernel, kernel});
  check_shape("bias", bias, {weight.size(0)});
}

Channels check_channels(const OptionalTensor& index, const OptionalTensor& count,
                        int64_t group_size, int64_t samples, int64_t width, const Tensor& like) {
  TORCH_CHECK(index.has_value() == count.has_value(),
              "channel_index and channel_count must be given together");
  if (!index) return {};
  check_positive("group_size", group_size);
  TORCH_CHECK(width % group_size == 0, "group_size must divide ", width, " channels, got ",
              group_size);
  const int64_t groups = width / group_size;
  for (const auto& [name, tensor] : {std::pair{"channel_index", *index}, {"channel_count", *count}}) {
    TORCH_CHECK(tensor.scalar_type() == at::kInt && tensor.is_contiguous(), name,
                " must be contiguous int32, got ", tensor.scalar_type());
    check_device(name, tensor, like);
  }
  check_shape("channel_index", *index, {samples, groups});
  check_shape("channel_count", *count, {samples});
  if (like.is_cpu()) {
    for (int64_t n = 0; n < samples; n++) {
      const int64_t listed = count->const_data_ptr<int32_t>()[n];
      TORCH_CHECK(listed >= 0 && listed <= groups, "channel_count must be from 0 to ", groups,
                  ", got ", listed, " of sample ", n);
      const int32_t* values = index->const_data_ptr<int32_t>() + n * groups;
      for (int64_t i = 0; i < listed; i++)
        TORCH_CHECK(values[i] > (i ? values[i - 1] : -1) && values[i] < groups,
                    "channel_index must have ascending values from 0 to ", groups - 1, ", got ",
                    values[i], " of sample ", n);
    }
  }
  return {*index, *count, group_size};
}

Tensor empty_map(const Tensor& like, const MapSize& size, int64_t channels) {
  return at::empty({size.samples, channels, size.height, size.width},
                   like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

}  // namespace laud
