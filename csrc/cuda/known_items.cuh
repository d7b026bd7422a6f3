// The known positives of a row's query, checked where they are used.
#pragma once

#undef NDEBUG  // the checks must stay in every build
#include <cassert>

#include "warp.cuh"

namespace cw_cuda {

using CW_NAMESPACE::KnownItems;

// What is out of range stops the kernel with a message; should it run on, such a query has no known positives.
__device__ __forceinline__ KnownItems checked_known_items(const NegativeSource& source, int64_t num_known, int64_t row) {
  if (!source.query_ids || CW_NAMESPACE::is_padding(source, row)) return {nullptr, 0};
  const KnownItems known = CW_NAMESPACE::known_items_of(source, row);
  [[maybe_unused]] const int64_t query = source.query_ids[row];
  assert(query >= 0 && query < source.num_queries && "query_ids must be in [0, queries)");
  if (known.count == 0) return {source.known, 0};  // a null pointer if there are no known positives at all
  const int64_t first = known.items - source.known;
  const bool inside = known.items && first >= 0 && known.count >= 0 && known.count <= num_known - first;
  assert(inside && "starts must rise from 0 to the number of known positives");
  return inside ? known : KnownItems{nullptr, 0};
}

}  // namespace cw_cuda
