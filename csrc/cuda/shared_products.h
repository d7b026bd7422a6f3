// Matrix products of level 2 with shared negatives: what its two passes have in common.
#pragma once


namespace cw_cuda {

// a·b in the compute dtype; of bf16 operands on the tensor cores, summed in fp32.
Tensor product(const Tensor& a, const Tensor& b);

// sum += factor · a·b, in the same way.
void add_product(const Tensor& sum, const Tensor& a, const Tensor& b, double factor);

// x with 0 instead of NaN and ±∞, as an operand of a product, where a coefficient of 0 would not remove them. A row or
// column that should become NaN has NaN coefficients itself.
Tensor finite_or_zero(const Tensor& x);

}  // namespace cw_cuda
