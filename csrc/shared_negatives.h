// Level 2 where all rows share their negatives.
#pragma once

#include "backend.h"

namespace cw_ext {

// Which shared negatives a row leaves out, as if they did not exist: its own positive and its query's known positives. The
// columns of an item are a linked list: first_column[item], then next_column[column], until −1.
struct Exclusion {
  at::Tensor first_column;  // [I] int32, both undefined if nothing is left out
  at::Tensor next_column;   // [N] int32
  History history;
};

struct SharedNegativesCall : QueryCall {
  at::Tensor neg_ids;  // [N] int64
  at::Tensor log_q;    // [B, N] T, or undefined; rows may have any stride
  Exclusion exclusion;
  at::Tensor shared_coefficients;  // [B, N] T; on CUDA, for tables in bf16, bf16. With gradients, this one or the next
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

namespace cw_ext {

inline void run_shared_negatives(const SharedNegativesCall& call) { CW_RUN(call.queries, shared_negatives(call)); }

}  // namespace cw_ext
