// When the CPU scores all items rather than look up the negatives of each row.
#pragma once

#include "checks.h"

namespace cw_ext {

// cw_ext/fake.py has the same rule. It must not depend on the number of threads.
inline bool is_dense(int64_t rows, int64_t negatives, int64_t items, int64_t dim, const Tensor&) {
  if (kCuda) return false;
  return items > 0 && rows * negatives >= 65536 && items <= 2 * negatives;
}

}  // namespace cw_ext
