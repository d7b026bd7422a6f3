// Where ids stand among the distinct ones. Included by kernels_impl.h.
#pragma once

#include "simd.h"

namespace cw_cpu {
namespace CW_ISA {

// The places of ids [n], all of them among those that were added; −1 stays −1.
template <typename Id>
void find_places(const IdPlaces& places, const Id* ids, int64_t n, int64_t* out) {
  if (places.words) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t id = ids[i] < 0 ? 0 : int64_t(ids[i]);
      const IdWord& word = places.words[id / kIdsPerWord];
      const uint64_t below = word.bits & ((uint64_t(1) << (id % kIdsPerWord)) - 1);
      out[i] = ids[i] < 0 ? -1 : word.before + __builtin_popcountll(below);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < 0) {
      out[i] = -1;
      continue;
    }
    const int64_t id = int64_t(ids[i]), bin = id >> places.shift;
    int64_t first = places.bins[bin], last = places.bins[bin + 1];
    while (last - first > 1) {
      const int64_t middle = first + (last - first) / 2;
      (places.sorted[middle] <= id ? first : last) = middle;
    }
    out[i] = first;
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
