// Whether the CPU scores all items rather than look up the negatives of each row.
#pragma once

#include "checks.h"

namespace cw_ext {

// `weighted`: negatives have log weights, of their own or by a curve, which cost both ways more, but here for all items.
// cw_ext/fake.py has the same rule. It must not depend on the number of threads.
//
// Measured (benchmarks/NOTES.md): per item 0.9 ns and 1/40 ns for each dimension, per negative 1 ns; a look-up takes 4 ns and
// 1/7 ns for each dimension. So up to three times as many items as negatives pay off in any dimension; in fp64, where a product
// takes twice as long and an exponential twenty times, as many. And the coefficients of all items, 4 bytes each, then take no
// more than twice the memory of those of the negatives, 6 bytes each with their order. Packing the table takes some rows to pay.
inline bool is_dense(int64_t rows, int64_t negatives, int64_t items, bool weighted, const Tensor& like) {
  constexpr int64_t kFewestRows = 128, kFewestPairs = 16384, kMostNegatives = int64_t(1) << 24;  // exact in fp32
  const int64_t most = like.scalar_type() == kDouble ? 1 : weighted ? 2 : 3;
  return !kCuda && items > 0 && rows >= kFewestRows && rows * negatives >= kFewestPairs && negatives < kMostNegatives &&
         items <= most * negatives;
}

}  // namespace cw_ext
