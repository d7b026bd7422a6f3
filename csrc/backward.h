// What the backward ops have in common.
#pragma once

#include "checks.h"

namespace cw_ext {

inline void check_factor(const Tensor& factor, const Tensor& x) {
  CW_CHECK_VALUE(factor.dim() == 0 || (factor.dim() == 1 && x.dim() > 0 && factor.size(0) == x.size(0)),
                 "factor must be one number or one per row of the gradients, got ", factor.sizes(), " for ", x.sizes());
  CW_CHECK_VALUE(factor.device() == x.device(), "factor must be on ", x.device(), ", got ", factor.device());
  check_type(factor, compute_type(x), "factor");
}

// x [B, ...] times the gradients of the rows' losses, if they are not in it yet; both in the compute dtype.
inline Tensor times_factor(const Tensor& x, const OptionalTensor& factor) {
  if (!factor) return as_contiguous(x);
  check_factor(*factor, x);
  const Tensor out = empty_large(x.sizes(), options_of(x));
  if (x.numel() > 0) backend::scale_rows(as_contiguous(x), as_contiguous(*factor), out);
  return out;
}

// The gradient of a mean times what is left to multiply its rows' gradients by, both one number.
inline Tensor times_rescale(const Tensor& factor, const Tensor& rescale) {
  check_shape(rescale, {}, "rescale", factor);
  check_shape(factor, {}, "factor", rescale);
  check_type(rescale, factor.scalar_type(), "rescale");
  if (kCuda) return torch_op("aten::mul", "Tensor", factor, rescale);
  const Tensor product = empty({}, options_of(factor));
  const auto multiply = [&](auto element) {
    using T = decltype(element);
    *static_cast<T*>(product.mutable_data_ptr()) =
        *static_cast<const T*>(factor.const_data_ptr()) * *static_cast<const T*>(rescale.const_data_ptr());
  };
  factor.scalar_type() == kDouble ? multiply(double{}) : multiply(float{});
  return product;
}

// How CUDA sums per item; the CPU has one way.
inline ItemSums item_sums_of(std::string_view name) {
  return ItemSums(index_of(name, {"chosen", "atomic", "sorted"}, "sums"));
}

}  // namespace cw_ext
