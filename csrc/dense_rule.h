// Whether the CPU scores all items rather than look up the negatives of each row.
#pragma once

#include "checks.h"

namespace cw_ext {

// `by_draw`: each draw has a log weight of its own, which takes two more passes over the draws; `by_item`: they come from
// a table or a curve. cw_ext/fake.py has the same rule. It must not depend on the number of threads.
//
// Counted and measured (benchmarks/NOTES.md): per item 0.9 ns and 1/40 ns for each dimension, per negative 1 ns; a look-up
// takes 4 ns and 1/7 ns for each dimension. So in fp32 three times as many items as negatives pay off, whatever the
// dimension. From fp16 and bf16 look-ups read less; in fp64 an exponential takes ten times as long, and all items take
// one. And the coefficients of all items, 4 bytes each, then take less than twice the memory of those of the negatives,
// 6 bytes each with their order. Packing the table takes some rows to pay.
inline bool is_dense(int64_t rows, int64_t negatives, int64_t items, bool by_draw, bool by_item, const Tensor& like) {
  constexpr int64_t kFewestRows = 128, kFewestPairs = 16384, kMostNegatives = int64_t(1) << 24;  // exact in fp32
  const ScalarType type = like.scalar_type();
  const int64_t most = type == kDouble ? 2 : by_draw ? 3 : by_item || type != kFloat ? 4 : 5;  // per two negatives
  return !kCuda && items > 0 && rows >= kFewestRows && rows * negatives >= kFewestPairs && negatives < kMostNegatives &&
         2 * items <= most * negatives;
}

}  // namespace cw_ext
