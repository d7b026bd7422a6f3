// Scores of given items: looked up row by row, or picked from those of all items where these are few. Included by
// kernels_impl.h.
#pragma once

#include "gather.h"
#include "product_kernel.h"
#include "query_row.h"

namespace cw_cpu {
namespace CW_ISA {

// The place of the first id that is neither of an item nor −1, or −1 if there is none.
template <typename Id>
CW_INLINE int64_t first_bad_id(const Id* ids, int64_t n, int64_t items) {
  uint64_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t j = 0; j < n; ++j) bad |= uint64_t(uint64_t(int64_t(ids[j])) + 1 > uint64_t(items));
  for (int64_t j = 0; bad && j < n; ++j) {
    if (uint64_t(int64_t(ids[j])) + 1 > uint64_t(items)) return j;
  }
  return -1;
}

// Returns the place among all ids of the first bad one in the block or soon after it, with nothing written, or −1.
template <typename In, typename Id>
int64_t candidate_scores(const CandidateScoresTask<In, Id>& task, const CandidateBlock& block,
                         const CandidatesScratch<In>& scratch) {
  using T = typename Compute<In>::type;
  const int64_t dim = task.items.dim, count = block.count(), columns = block.columns;
  const int64_t first = block.first_row * task.k + block.first_column;
  const Id* const ids = task.ids + first;
  // Behind the block's items, those that come next: read a register at a time past the end, and asked for.
  const int64_t behind = kMostRowsAhead + kScoresPast, left = task.count - first - count;
  const int64_t next = behind < left ? behind : left;
  const int64_t bad = first_bad_id(ids, count + next, task.num_items);
  if (bad >= 0) return first + bad;
  prefetch_elements(ids + count, count < left ? count : left);  // the next block's

  const Gather<In, T> items(task.items, task.inverse_norms, task.normalized);
  const In** const item_rows = scratch.item_rows;
  T* const score = scratch.numbers;                           // [kCandidates + kScoresPast]
  T* const inverse = score + kCandidates + kScoresPast;       // likewise
  T* const unit = inverse + kCandidates + kScoresPast;        // [dim]
  T* const query = unit + round_up_dim(dim);                  // in the order of chunks

  items.find_rows(ids, count + next, item_rows);
  fill(item_rows + count + next, behind - next, task.items.zeros);
  items.find_inverse_norms(ids, count, inverse);
  for (int64_t r = 0; r < block.rows; ++r) {
    unit_query(task.queries + (block.first_row + r) * dim, dim, task.normalized, unit);
    to_chunks(unit, dim, items.chunks, query);
    const int64_t begin = r * columns;
    items.scores(query, item_rows + begin, columns, task.scale, score, inverse + begin);
    const Id* const own_ids = ids + begin;
    T* const out = task.out + first + begin;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) out[j] = own_ids[j] < 0 ? -infinity<T>() : score[j];
  }
  return -1;
}

// The same for rows [begin, end), at most dense_candidates_step() of them. scratch: dense_candidates_scratch(I, D).
template <typename In, typename Id>
int64_t dense_candidate_scores(const CandidateScoresTask<In, Id>& task, int64_t begin, int64_t end,
                               typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  const int64_t dim = task.items.dim, k = task.k, rows = end - begin, room = round_up_dim(dim);
  const int64_t panels = (task.num_items + kPanel - 1) / kPanel, stride = kBeforeScores + panels * kPanel;
  const Id* const ids = task.ids + begin * k;
  const int64_t bad = first_bad_id(ids, rows * k, task.num_items);
  if (bad >= 0) return begin * k + bad;

  T* const units = scratch;                                 // [rows, room]
  T* const scores = units + rows * room + kBeforeScores;  // [rows, stride]
  for (int64_t r = 0; r < rows; ++r) {
    unit_query(task.queries + (begin + r) * dim, dim, task.normalized, units + r * room);
    scores[r * stride - 1] = -infinity<T>();  // what an id of −1 picks
  }
  product(ProductTask<T>{units, room, 1, dim, task.columns, panels, scores, stride, false}, 0, rows);
  for (int64_t r = 0; r < rows; ++r) {
    const T* const own = scores + r * stride;
    const Id* const own_ids = ids + r * k;
    T* const out = task.out + (begin + r) * k;
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) out[j] = own[own_ids[j]];
  }
  return -1;
}

}  // namespace CW_ISA
}  // namespace cw_cpu
