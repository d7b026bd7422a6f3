// Level 2 where all rows share their negatives.
#pragma once

#include "calls.h"

namespace cw_ext {

// Which shared negatives a row leaves out, as if they were not there: all that are its own positive or one of its query's
// known positives. The columns of an item are a list: first_column[item], then next_column[column], to −1.
struct Exclusion {
  at::Tensor first_column;  // [I] int32, these two undefined where nothing is left out
  at::Tensor next_column;   // [N] int32
  History history;
};

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
  Exclusion exclusion;
  bool with_gradients;
  RowOutputs out;
  at::Tensor d_queries;            // [B, D] T     these three and one of the next two only with_gradients
  at::Tensor unit_queries;         // [B, D] T
  at::Tensor coefficients;         // [B, 1 + M] T
  at::Tensor shared_coefficients;  // [B, N] T; on CUDA, for tables in bf16, bf16
  at::Tensor negative_sums;        // [N, D] T, zeros: nothing of size B·N is kept then. To row n is added, over the rows b,
                                   //           scale · dloss/dscore[b, n] · row_factor[b] · row b of unit_queries
  at::Tensor row_factor;           // [B] T, or undefined: 1
};

}  // namespace cw_ext

namespace cw_cpu {
void shared_negatives(const cw_ext::SharedNegativesCall& call);
}  // namespace cw_cpu

namespace cw_cuda {
void shared_negatives(const cw_ext::SharedNegativesCall& call);
}  // namespace cw_cuda
