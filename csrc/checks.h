// Checks and small helpers that the ops have in common.
//
// Python checks the user's arguments and writes the error messages (cw_ext/checks.py). The checks here keep memory safe, also
// where an op is called directly.
#pragma once

#include <initializer_list>

#include "allocate.h"
#include "backend.h"

namespace cw_ext {

inline int index_of(std::string_view value, std::initializer_list<std::string_view> choices, const char* name) {
  int i = 0;
  for (const auto choice : choices) {
    if (choice == value) return i;
    ++i;
  }
  CW_CHECK_VALUE(false, name, " is unknown: ", value);
  return -1;
}

inline ScalarType compute_type(const Tensor& x) { return x.scalar_type() == kDouble ? kDouble : kFloat; }

// The dtype in which the gradients of the negatives' scores are kept until backward. CUDA keeps bf16 in bf16, which has the
// range of fp32; in fp16 the gradients of a mean would underflow.
inline Options kept_options(const Tensor& like) {
  const bool narrow = kCuda && like.scalar_type() == kBFloat16;
  return options_of(like, narrow ? kBFloat16 : compute_type(like));
}

inline void check_shape(const Tensor& x, Sizes shape, const char* name, const Tensor& like) {
  CW_CHECK_VALUE(x.sizes().equals(shape), name, " must have shape ", shape, ", got ", x.sizes());
  CW_CHECK_VALUE(x.device() == like.device(), name, " must be on ", like.device(), ", got ", x.device());
}

inline void check_type(const Tensor& x, ScalarType type, const char* name) {
  CW_CHECK_TYPE(x.scalar_type() == type, name, " must have dtype ", type, ", got ", x.scalar_type());
}

// Contiguous within each row; the stride between rows is free.
inline Tensor with_contiguous_rows(const Tensor& x) {
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : as_contiguous(x);
}

inline Tensor or_empty(const Tensor& x, const Options& options) {
  return x.defined() ? x : empty({0}, options);
}

}  // namespace cw_ext
