// Checks and small helpers that the ops have in common.
//
// Python checks the user's arguments and writes the error messages (cw_ext/checks.py). The checks here keep memory safe, also
// where an op is called directly.
#pragma once

#include <ATen/ATen.h>

#include <initializer_list>
#include <string>

#include "allocate.h"
#include "backend.h"

namespace cw_ext {

using OptionalTensor = std::optional<at::Tensor>;

inline int index_of(c10::string_view value, std::initializer_list<c10::string_view> choices, const char* name) {
  int i = 0;
  for (const auto choice : choices) {
    if (choice == value) return i;
    ++i;
  }
  TORCH_CHECK_VALUE(false, name, " is unknown: ", std::string(value));
}

inline at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The dtype in which the gradients of the negatives' scores are kept until backward. CUDA keeps bf16 in bf16, which has the
// range of fp32; in fp16 the gradients of a mean would underflow.
inline at::TensorOptions kept_options(const at::Tensor& like) {
  const bool narrow = on_cuda(like) && like.scalar_type() == at::kBFloat16;
  return like.options().dtype(narrow ? at::kBFloat16 : compute_type(like));
}

inline void check_shape(const at::Tensor& x, at::IntArrayRef shape, const char* name, const at::Tensor& like) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, " must have shape ", shape, ", got ", x.sizes());
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " must be on ", like.device(), ", got ", x.device());
}

inline void check_type(const at::Tensor& x, at::ScalarType type, const char* name) {
  TORCH_CHECK_TYPE(x.scalar_type() == type, name, " must have dtype ", type, ", got ", x.scalar_type());
}

// Contiguous within each row; the stride between rows is free.
inline at::Tensor with_contiguous_rows(const at::Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous(); }

inline at::Tensor or_empty(const at::Tensor& x, const at::TensorOptions& options) {
  return x.defined() ? x : empty({0}, options);
}

}  // namespace cw_ext
