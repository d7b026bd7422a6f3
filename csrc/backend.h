// The backend of a call, by the device of its tensors.
#pragma once

#include "calls.h"

namespace cw_ext {

void run_scores(const ScoresCall& call);
void run_embeddings(const EmbeddingsCall& call);
void run_item_gradient(const ItemGradientCall& call);

// x [..., D], divided by its norm; a zero row stays zero.
at::Tensor unit_rows(const at::Tensor& x);

// x with 0 in the place of NaN and ±∞: an operand of a matrix product, where a coefficient of 0 would not silence them.
// A row or column that they should spoil has NaN coefficients of its own.
at::Tensor finite_or_zero(const at::Tensor& x);

}  // namespace cw_ext
