// From embeddings, each row with its own negatives. Included by kernels_impl.h.
#pragma once

#include "gather.h"
#include "long_sums.h"
#include "query_row.h"

namespace cw_cpu {
namespace CW_ISA {

template <typename In>
void inverse_norms(const In* x, int64_t dim, typename Compute<In>::type* out, int64_t begin, int64_t end) {
  using T = typename Compute<In>::type;
  for (int64_t i = begin; i < end; ++i) out[i] = inverse_norm(squared_norm<In, T>(x + i * dim, dim));
}

// How many items are summed before the sum is added to a query's gradient.
constexpr int64_t kItemsPerSum = 512;

// coefficients: of rows [begin, end), or null.
template <typename In, typename Id>
void embeddings(const EmbeddingsTask<In, Id>& task, int64_t begin, int64_t end, typename Compute<In>::type* coefficients,
                const EmbeddingsScratch<In>& scratch) {
  using T = typename Compute<In>::type;
  Parameters<T> p = make_parameters<T>(task.arguments, task.values.temperature.at(begin));
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t n = task.n, m = task.m, dim = task.items.dim, width = 1 + m + n;
  const Gather<In, T> items(task.items, task.inverse_norms, task.normalized);
  const int64_t padded_dim = items.chunks.vectors() * kLanes<T>;
  const bool wanted = coefficients != nullptr;

  // Each [1 + m + n] and more, in the layout of the coefficients: positive, extra positives, negatives.
  const int64_t room = round_up_width(width);
  const In** const item_rows = scratch.item_rows;
  T* const score = scratch.numbers;
  T* const inverse = score + room;
  T* const log_q = inverse + room;
  T* const row_room = log_q + room;  // row_scratch(n)
  T* const own_coefficients = row_room + row_scratch(room);
  T* const unit = own_coefficients + room;         // [dim]
  T* const query = unit + round_up_dim(dim);       // [padded_dim], in the order of chunks
  T* const d_query = query + round_up_dim(dim);    // 3 times [padded_dim], likewise
  const LongSums<T> sums{d_query, d_query + round_up_dim(dim), d_query + 2 * round_up_dim(dim)};

  for (int64_t b = begin; b < end; ++b) {
    const int64_t* const pos_id = task.ids.pos + b;
    const int64_t* const extra_ids = task.ids.extra + b * m;
    const Id* const neg_ids = task.ids.negatives_of(b);

    const T query_inverse = unit_query(task.queries + b * dim, dim, task.normalized, unit);
    if (*pos_id < 0) {  // everything is masked: the table is not read
      write_row(task.out, b, RowResult<T>{});
      if (task.out.d_log_q) fill(task.out.d_log_q + b * n, n, T(0));
      if (task.out.d_curve) fill(task.out.d_curve + b * (task.curve.last + 1), task.curve.last + 1, T(0));
      if (task.out.above) task.out.above[b] = 0;
      if (!wanted) continue;
      fill(coefficients + (b - begin) * width, width, T(0));
      for (int64_t i = 0; task.d_queries && i < dim; ++i) {
        task.d_queries[b * dim + i] = T(0);
        task.unit_queries[b * dim + i] = unit[i];
      }
      continue;
    }
    to_chunks(unit, dim, items.chunks, query);

    items.find_rows(pos_id, 1, item_rows);
    items.find_rows(extra_ids, m, item_rows + 1);
    // Behind the row's negatives, those of the next rows.
    const int64_t behind = embeddings_rows(n, m) - width, left = (end - b - 1) * n, next = behind < left ? behind : left;
    items.find_rows(neg_ids, n + next, item_rows + 1 + m);
    fill(item_rows + width + next, behind - next, task.items.zeros);
    items.find_inverse_norms(pos_id, 1, inverse);
    items.find_inverse_norms(extra_ids, m, inverse + 1);
    items.find_inverse_norms(neg_ids, n, inverse + 1 + m);
    items.scores(query, item_rows, width, task.scale, score, inverse);
    for (int64_t k = 0; k < m; ++k) {
      if (extra_ids[k] < 0) score[1 + k] = -infinity<T>();
    }
    Id smallest = 0;
#pragma omp simd reduction(min : smallest)
    for (int64_t j = 0; j < n; ++j) smallest = neg_ids[j] < smallest ? neg_ids[j] : smallest;
    // Only of some rows, like the ids.
    const T* const given_log_q = task.log_q ? task.log_q + (b - task.ids.first) * task.log_q_stride : nullptr;

    const T* const masked = masked_log_q(smallest < 0, given_log_q, n, log_q,
                                         [=](int64_t j) { return neg_ids[j] < 0; });
    T* const row_coefficients = wanted ? coefficients + (b - begin) * width : own_coefficients;
    T* const neg_coefficients = row_coefficients + 1 + m;
    const RowResult<T> result = solve_row(task, kernel, p, b, score, score + 1 + m, n, nullptr, masked,
                                          row_coefficients, neg_coefficients, row_room);
    if (!wanted) continue;

#pragma omp simd
    for (int64_t j = 0; j < n; ++j) neg_coefficients[j] *= task.scale;
    if (!task.d_queries) continue;
    T* const target = task.d_queries + b * dim;
    if (result.live) {
      fill(sums.sum, padded_dim, T(0));
      items.weigh(row_coefficients, width, inverse, item_rows);
      if (width <= kItemsPerSum) {
        items.add(item_rows, width, inverse, sums.sum);
      } else {
        for (int64_t j = 0; j < width; j += kItemsPerSum) {
          const int64_t count = width - j < kItemsPerSum ? width - j : kItemsPerSum;
          items.add(item_rows + j, count, inverse + j, sums.sum);
          carry_over(sums, j == 0, int(padded_dim / kLanes<T>));
        }
        add_low(sums, padded_dim, sums.sum);
      }
      from_chunks<In>(sums.sum, dim, target);
      if (task.normalized) through_normalization(target, unit, query_inverse, dim);
    } else {
      fill(target, dim, T(0));
    }
    for (int64_t i = 0; i < dim; ++i) task.unit_queries[b * dim + i] = unit[i];
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
