// Shared negatives, so many that a row's scores do not stay in the cache.
#pragma once

#include "../shared_negatives.h"
#include "dispatch.h"

namespace cw_cpu {

// Whether shared_chunks() can do the call, and is faster.
bool goes_in_chunks(const cw_ext::SharedNegativesCall& call);
void shared_chunks(const cw_ext::SharedNegativesCall& call);

// Fills a task from its call, but for its room.
template <typename In>
void fill_shared_task(const cw_ext::SharedNegativesCall& call, std::vector<In>& room, SharedTask<In>& task) {
  using T = typename Compute<In>::type;
  fill_query_task(call, room, task);
  task.pos_ids = pointer<const int64_t>(call.pos_ids);
  task.extra_ids = pointer<const int64_t>(call.extra_ids);
  task.neg_ids = pointer<const int64_t>(call.neg_ids);
  task.num_items = call.items.size(0);
  task.any_padding = std::any_of(task.neg_ids, task.neg_ids + task.n, [](int64_t id) { return id < 0; });
  const cw_ext::Exclusion& exclusion = call.exclusion;
  const auto& history = exclusion.history;
  task.excludes = exclusion.catalogue || exclusion.first_column.defined();
  task.by_item = {pointer<const int32_t>(exclusion.first_column), pointer<const int32_t>(exclusion.next_column),
                  task.neg_ids, slot_bits(task.n)};
  task.histories = {pointer<const int64_t>(history.query_ids), pointer<const int64_t>(history.starts),
                    pointer<const int32_t>(history.known)};
  task.coefficients = pointer<T>(call.coefficients);
  task.shared_coefficients = pointer<T>(call.shared_coefficients);
  task.first_row = 0;
}

}  // namespace cw_cpu
