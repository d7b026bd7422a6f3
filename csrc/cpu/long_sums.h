// Sums of many terms that do not lose small terms. Included by kernels_impl.h.
#pragma once

#include "row_kernel.h"
#include "simd.h"

namespace cw_cpu {
namespace CW_ISA {

// A sum of many terms in three parts, so that small terms are not lost beside a large sum: `sum` of the latest pairs,
// `high` of those before, and `low` of the rounding errors when `sum` was added to `high` (Knuth's TwoSum).
template <typename T>
struct LongSums {
  T* sum;
  T* high;
  T* low;
};

// Moves `sum` [vectors] into `high` and `low`, which are not set yet before the first time.
template <typename T>
CW_INLINE void carry_over(const LongSums<T>& x, bool first, int vectors) {
  const Lanes<T> zero = {};
  for (int v = 0; v < vectors; ++v) {
    const int64_t place = v * kLanes<T>;
    const Lanes<T> sum = load_vector<Lanes<T>>(x.sum + place);
    store_vector(x.sum + place, zero);
    if (first) {
      store_vector(x.high + place, sum);
      store_vector(x.low + place, zero);
      continue;
    }
    const Lanes<T> high = load_vector<Lanes<T>>(x.high + place);
    const Lanes<T> total = high + sum, added = total - high;
    const Lanes<T> lost = (high - (total - added)) + (sum - added);
    store_vector(x.high + place, total);
    store_vector(x.low + place, load_vector<Lanes<T>>(x.low + place) + lost);
  }
}

// `high` [n] plus the rounding errors; these are NaN, and left out, if the sum is not finite.
template <typename T>
CW_INLINE void add_low(const LongSums<T>& x, int64_t n, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x.high[i] + (is_finite(x.low[i]) ? x.low[i] : T(0));
}

}  // namespace CW_ISA
}  // namespace cw_cpu
