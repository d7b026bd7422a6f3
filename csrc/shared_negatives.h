// Level 2 where all rows share their negatives.
#pragma once

#include "calls.h"

namespace cw_ext {

// As EmbeddingsCall, with the negatives' ids [N].
struct SharedNegativesCall {
  LossArguments arguments;
  at::Tensor queries;    // [B, D]
  at::Tensor items;      // [I, D]
  at::Tensor pos_ids;    // [B] int64
  at::Tensor neg_ids;    // [N] int64
  at::Tensor extra_ids;  // [B, M] int64, M may be 0
  at::Tensor log_q;      // [B, N] T, or undefined
  PerRow prior;
  PerRow threshold;
  double scale;
  bool normalized;
  bool with_gradients;
  RowOutputs out;
  at::Tensor d_queries;            // [B, D] T     these four only with_gradients
  at::Tensor unit_queries;         // [B, D] T
  at::Tensor coefficients;         // [B, 1 + M] T
  at::Tensor shared_coefficients;  // [B, N] T; on CUDA, for tables in bf16, bf16
};

}  // namespace cw_ext

namespace cw_cpu {
void shared_negatives(const cw_ext::SharedNegativesCall& call);
}  // namespace cw_cpu

namespace cw_cuda {
void shared_negatives(const cw_ext::SharedNegativesCall& call);
}  // namespace cw_cuda
