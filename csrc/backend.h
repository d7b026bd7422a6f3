// The backend of a call, by the device of its tensors.
#pragma once

#include "calls.h"

namespace cw_ext {

// Whether the CUDA kernels run a call on this tensor.
inline bool on_cuda([[maybe_unused]] const at::Tensor& x) {
#ifdef CW_CUDA_EMULATION  // their threads emulated on the CPU, which has no kernels of its own then: tests/cuda_emulation
  return true;
#else
  return x.is_cuda();
#endif
}

void run_scores(const ScoresCall& call);
void run_embeddings(const EmbeddingsCall& call);
void run_item_gradient(const ItemGradientCall& call);

// x [..., D], divided by its norm; a zero row stays zero.
at::Tensor unit_rows(const at::Tensor& x);

// x with 0 in the place of NaN and ±∞: an operand of a matrix product, where a coefficient of 0 would not silence them.
// A row or column that they should spoil has NaN coefficients of its own.
at::Tensor finite_or_zero(const at::Tensor& x);

}  // namespace cw_ext
