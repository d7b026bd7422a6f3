// The known positives of a row's query, checked where they are used.
#pragma once

#undef NDEBUG  // the checks must stay, whatever the build
#include <cassert>

#include "lanes.cuh"

namespace cw_cuda {

using CW_NAMESPACE::History;

// What is out of range stops the kernel with a message; should it run on, such a query has no known positives.
__device__ __forceinline__ History checked_history(const NegativeSource& source, int64_t num_known, int64_t row) {
  if (!source.query_ids || CW_NAMESPACE::is_padding(source, row)) return {nullptr, 0};
  const History history = CW_NAMESPACE::history_of(source, row);
  [[maybe_unused]] const int64_t query = source.query_ids[row];
  assert(query >= 0 && query < source.num_queries && "query_ids must be in [0, queries)");
  if (history.count == 0) return {source.known, 0};  // where nothing at all is known, that is a null pointer
  const int64_t first = history.items - source.known;
  const bool inside = history.items && first >= 0 && history.count >= 0 && history.count <= num_known - first;
  assert(inside && "starts must rise from 0 to the number of known positives");
  return inside ? history : History{nullptr, 0};
}

}  // namespace cw_cuda
