// Matrix products of level 2 with shared negatives: what its two passes have in common.
#pragma once

#include <ATen/core/Tensor.h>

namespace cw_cuda {

// a·b in the compute dtype; of bf16 operands on the tensor cores, summed in fp32.
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

// sum += factor · a·b, in the same way.
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, double factor);

// x with 0 in the place of NaN and ±∞: an operand of a product, where a coefficient of 0 would not silence them. A row or
// column that they should spoil has NaN coefficients of its own.
at::Tensor finite_or_zero(const at::Tensor& x);

}  // namespace cw_cuda
