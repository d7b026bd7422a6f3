// The shared negatives that a row leaves out. Included by the kernels and by what prepares them.
#pragma once

#include "kernels.h"

namespace cw_cpu {

// Calls visit(column) for the columns that row b leaves out (Exclusion), each once.
template <typename In, typename Visit>
static CW_INLINE void each_left_out(const SharedTask<In>& task, int64_t b, Visit visit) {
  if (!task.excludes) return;
  const auto columns_of = [&](int64_t item) {
    if (!task.by_item.slots) return visit(item);
    for (int32_t c = task.by_item.first(item); c >= 0; c = task.by_item.next[c]) visit(c);
  };
  const int64_t positive = task.pos_ids[b];
  if (positive >= 0) columns_of(positive);
  if (!task.histories.query_ids) return;
  const int64_t query = task.histories.query_ids[b];
  if (query < 0) return;  // a row of padding
  for (int64_t k = task.histories.starts[query]; k < task.histories.starts[query + 1]; ++k) {
    const int64_t item = task.histories.known[k];
    if (item != positive && uint64_t(item) < uint64_t(task.num_items)) columns_of(item);
  }
}

}  // namespace cw_cpu
