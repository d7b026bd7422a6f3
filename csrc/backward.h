// What the backward ops have in common.
#pragma once

#include "checks.h"

namespace cw_ext {

// factor [rows], contiguous, from one per row or a single number.
inline Tensor factor_per_row(const Tensor& factor, int64_t rows) {
  if (factor.dim() > 0) return as_contiguous(factor);
  const int64_t stride = 0;
  AtenTensorHandle handle = nullptr;
  CW_TORCH(aoti_torch_as_strided(factor.get(), &rows, &stride, &handle));
  return torch::stable::contiguous(Tensor(handle));
}

// x [B, ...] times the gradients of the rows' losses, if they are not in it yet; both in the compute dtype.
inline Tensor times_factor(const Tensor& x, const OptionalTensor& factor) {
  if (!factor) return as_contiguous(x);
  const int64_t rows = x.size(0);
  const Tensor own_factor = factor_per_row(*factor, rows), out = empty_large(x.sizes(), options_of(x));
  check_shape(own_factor, {rows}, "factor", x);
  check_type(own_factor, x.scalar_type(), "factor");
  if (x.numel() > 0) backend::scale_rows(as_contiguous(x), own_factor, out);
  return out;
}

// How CUDA sums per item; the CPU has one way.
inline ItemSums item_sums_of(std::string_view name) {
  return ItemSums(index_of(name, {"chosen", "atomic", "sorted"}, "sums"));
}

}  // namespace cw_ext
