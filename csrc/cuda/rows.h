// What the two passes from embeddings with shared negatives do with whole tensors, on the current device.
#pragma once

#include "../calls.h"
#include "kernels.h"

namespace cw_cuda {

// out = x [B, W] · factor [B], where that is defined, · scale, with 0 instead of NaN and ±∞: an operand of a product, where
// a coefficient of 0 would not remove them. A row or column that should become NaN has NaN coefficients itself. x and
// factor in the compute dtype; out in that or, where x is in fp32, in bf16.
void copy_finite(const Tensor& x, const Tensor& factor, double scale, const Tensor& out);

// sum += x, both contiguous and in the compute dtype.
void add(const Tensor& x, const Tensor& sum);

// Sorts on the device of `like`.
void sort(const SortedPairs& pairs, const Tensor& like);

}  // namespace cw_cuda
