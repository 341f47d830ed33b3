// Copying and adding tokens (CPU).
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstring>
#include <vector>

#include "../common/calls.h"

namespace laud {
namespace {

// Copies listed slices of the first dimension; `to` and `from` index the list or the slices.
Tensor gather_rows(const char* what, const Tensor& x, const Tensor& index, int64_t limit,
                   int64_t size) {
  check_row_list(what, index, x);
  const int64_t listed = index.numel(), bytes = size * x.element_size();
  const Tensor indices = index.contiguous();
  const int64_t* at = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < listed; i++)
    TORCH_CHECK(at[i] >= 0 && at[i] < limit, what, " must have values from 0 to ", limit - 1,
                ", got ", at[i], " at ", i);
  Tensor out = at::empty({listed, size}, x.options().memory_format(at::MemoryFormat::Contiguous));
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, bytes));
  at::parallel_for(0, listed, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::memcpy(to + i * bytes, from + at[i] * bytes, bytes);
  });
  return out;
}

// out[index[i]] += rows[i], row by row.
template <typename T>
void add_rows(T* out, const T* rows, const int64_t* index, int64_t listed, int64_t size) {
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, size));
  at::parallel_for(0, listed, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* to = out + index[i] * size;
      const T* row = rows + i * size;
      for (int64_t c = 0; c < size; c++) to[c] += row[c];
    }
  });
}

void add_listed_rows(const char* what, Tensor& out, const Tensor& rows, const Tensor& index,
                     int64_t limit, int64_t size) {
  const Tensor indices = index.contiguous();
  const int64_t* at = indices.const_data_ptr<int64_t>();
  std::vector<bool> seen(limit, false);
  for (int64_t i = 0; i < indices.numel(); i++) {
    TORCH_CHECK(at[i] >= 0 && at[i] < limit, what, " must have values from 0 to ", limit - 1,
                ", got ", at[i], " at ", i);
    TORCH_CHECK(!seen[at[i]], what, " must list each row once, got ", at[i], " twice");
    seen[at[i]] = true;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "add_rows", [&] {
    add_rows<scalar_t>(out.mutable_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(), at,
                       indices.numel(), size);
  });
}

Tensor gather_tokens(const Tensor& x, const Tensor& index) {
  check_tokens("x", x);
  return gather_rows("index", x, index, x.size(0) * x.size(1), x.size(2));
}

void scatter_add_tokens_(Tensor& out, const Tensor& index, const Tensor& rows) {
  check_add_tokens(out, index, rows);
  const Tensor values = rows.contiguous();
  add_listed_rows("index", out, values, index, out.size(0) * out.size(1), out.size(2));
}

TORCH_LIBRARY_IMPL(laud_mm, CPU, m) {
  m.impl("gather_tokens", gather_tokens);
  m.impl("scatter_add_tokens_", scatter_add_tokens_);
}

}  // namespace
}  // namespace laud
