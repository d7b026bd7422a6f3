// Scores of given items on the CPU: blocks of ids in parallel.
#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "../allocate.h"
#include "embedding_tasks.h"
#include "packed_items.h"

namespace cw_cpu {

namespace {

// body(first, last) for parts of `blocks` in parallel, each of which returns the place of its first bad id, or −1.
template <typename In, typename Id, typename Body>
void in_blocks(const CandidateScoresTask<In, Id>& task, int64_t blocks, int64_t work, const Body& body) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::mutex mutex;
  int64_t bad = kNone;
  parallel_for(0, blocks, grain(work), [&](int64_t first, int64_t last) {
    const int64_t found = body(first, last);
    if (found < 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    bad = std::min(bad, found);  // the batch's first, in whatever order the threads find them
  });
  CW_CHECK_INDEX(bad == kNone, "ids must be in [0, ", task.num_items, "), or −1 for padding, got ",
                 bad == kNone ? 0 : int64_t(task.ids[bad]), " in row ", bad / task.k);
}

template <typename In, typename Id>
void look_up(CandidateScoresTask<In, Id>& task, const cw_ext::CandidateScoresCall& call) {
  using T = typename Compute<In>::type;
  const int64_t rows = call.queries.size(0), dim = task.items.dim, k = task.k;
  // A pass over the table, and a look-up of each norm, which nothing reads again, take many scores to pay.
  const Tensor inverse_norms =
      call.normalized ? inverse_norms_of(call.items, task.count / 8, call.out.scalar_type()) : Tensor();
  task.inverse_norms = pointer<const T>(inverse_norms);
  // Some rows at a time, or parts of a row.
  const int64_t rows_at_once = std::max<int64_t>(1, kCandidates / k);
  const int64_t columns = std::min(k, kCandidates), parts = (k + columns - 1) / columns;
  const int64_t blocks = (rows + rows_at_once - 1) / rows_at_once * parts;
  in_blocks(task, blocks, rows_at_once * columns * dim, [&](int64_t first, int64_t last) {
    const auto item_rows = scratch<const In*>(kCandidateRows);
    const auto numbers = scratch<T>(candidates_scratch(dim));
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = b / parts * rows_at_once, column = b % parts * columns;
      const CandidateBlock block{row, std::min(rows_at_once, rows - row), column, std::min(columns, k - column)};
      const int64_t bad = CW_WITH_ISA(candidate_scores<In, Id>(task, block, {item_rows.get(), numbers.get()}));
      if (bad >= 0) return bad;
    }
    return int64_t(-1);
  });
}

template <typename In, typename Id>
void pick(CandidateScoresTask<In, Id>& task, int64_t rows) {
  using T = typename Compute<In>::type;
  const int64_t items = task.num_items, dim = task.items.dim;
  const PackedItems<T> packed(task.items, items, task.normalized, task.scale, false);
  task.columns = packed.columns.get();
  const int64_t step = dense_candidates_step(items);
  in_blocks(task, (rows + step - 1) / step, step * items * dim, [&](int64_t first, int64_t last) {
    const auto room = scratch<T>(dense_candidates_scratch(items, dim));
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * step, end = std::min(rows, begin + step);
      const int64_t bad = CW_WITH_ISA(dense_candidate_scores<In, Id>(task, begin, end, room.get()));
      if (bad >= 0) return bad;
    }
    return int64_t(-1);
  });
}

// Whether all items are scored, and the given ones picked. Must not depend on the number of threads. Measured with 16 to 256
// dimensions (benchmarks/NOTES.md): an item costs less than a third of a look-up in fp32 and fp64, and more of one in half
// precision, where look-ups read less. Packing the table takes some rows to pay, and a row's scores must stay in L2.
bool picks(int64_t rows, int64_t k, int64_t items, ScalarType type) {
  constexpr int64_t kFewestRows = 128, kMostItems = 16384;
  const int64_t most = type == kHalf || type == kBFloat16 ? 5 : 7;  // per two candidates
  return rows >= kFewestRows && items <= kMostItems && 2 * items <= most * k;
}

template <typename In, typename Id>
void scores_of(const cw_ext::CandidateScoresCall& call) {
  using T = typename Compute<In>::type;
  std::vector<In> room;
  CandidateScoresTask<In, Id> task;
  task.queries = pointer<const In>(call.queries);
  task.items = readable_table(call.items, room);
  task.num_items = call.items.size(0);
  task.ids = pointer<const Id>(call.ids);
  task.count = call.ids.numel();
  task.k = call.ids.size(1);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.inverse_norms = task.columns = nullptr;
  task.out = pointer<T>(call.out);
  const int64_t rows = call.queries.size(0);
  if (picks(rows, task.k, task.num_items, call.queries.scalar_type())) {
    pick(task, rows);
  } else {
    look_up(task, call);
  }
}

}  // namespace

void candidate_scores(const cw_ext::CandidateScoresCall& call) {
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    call.ids.scalar_type() == kInt ? scores_of<In, int32_t>(call) : scores_of<In, int64_t>(call);
  });
}

}  // namespace cw_cpu
