// Level 2 where all rows share their negatives. Included by kernels_impl.h.
#pragma once

#include "gather.h"
#include "product_kernel.h"
#include "query_row.h"

namespace cw_cpu {
namespace CW_ISA {

// Panels [begin, end) of the negatives.
template <typename In>
void pack_shared(const SharedTask<In>& task, int64_t begin, int64_t end) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  const Gather<In, T> items(task.items, nullptr, task.normalized);
  const int64_t n = task.n, dim = task.items.dim, dim_panels = (dim + kPanel - 1) / kPanel;
  for (int64_t j = begin * kPanel; j < end * kPanel; ++j) {
    T* const column = task.columns + (j - j % kPanel) * dim + j % kPanel;
    if (j >= n) {
      for (int64_t i = 0; i < dim; ++i) column[i * kPanel] = T(0);
      continue;
    }
    const In* const x = items.row(task.neg_ids[j]);
    const T inverse = task.normalized ? inverse_norm(squared_norm<In, T>(x, dim)) : T(1);
    for (int64_t i = 0; i < dim; ++i) {
      const T value = load(x[i]) * inverse;
      column[i * kPanel] = value * task.scale;
      task.rows[(i - i % kPanel) * n + j * kPanel + i % kPanel] = is_finite(value) ? value : T(0);
    }
    for (int64_t i = dim; i < dim_panels * kPanel; ++i) task.rows[(i - i % kPanel) * n + j * kPanel + i % kPanel] = T(0);
  }
}

// Calls visit(column) for the columns that row b leaves out (Exclusion), each once.
template <typename In, typename Visit>
CW_INLINE void each_left_out(const SharedTask<In>& task, int64_t b, Visit visit) {
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

// scratch: shared_scratch(n, m, dim).
template <typename In>
void shared_negatives(const SharedTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  Parameters<T> p = make_parameters<T>(task.arguments, task.values.temperature.at(begin));
  const RowKernel<T> kernel = choose_row_kernel(p);
  const Gather<In, T> items(task.items, nullptr, task.normalized);
  const int64_t n = task.n, m = task.m, dim = task.items.dim, step = shared_step(n), own = 1 + m;
  const int64_t room = round_up_dim(dim), panels = (n + kPanel - 1) / kPanel, dim_panels = (dim + kPanel - 1) / kPanel;
  const bool wanted = task.with_gradients;

  // Of `step` rows:
  T* const scores = scratch;                          // [panels·kPanel]
  T* const units = scores + step * panels * kPanel;   // [dim]
  T* const sums = units + step * room;                // [dim_panels·kPanel]
  T* const own_scores = sums + step * room;           // [1 + m], positive and extra positives
  T* const inverse = own_scores + step * own;         // [1 + m]
  T* const query_inverse = inverse + step * own;      // one number
  // Of one row:
  T* const log_q = query_inverse + step;              // [n]
  T* const row_room = log_q + n;                      // row_scratch(n)
  T* const terms = row_room + row_scratch(n);         // [n], where no gradients are wanted
  T* const own_terms = terms + n;                     // [1 + m]
  T* const query = own_terms + own;                   // [room], in the order of chunks
  T* const d_query = query + room;                    // [room], likewise

  for (int64_t first = begin; first < end; first += step) {
    const int64_t count = end - first < step ? end - first : step;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t b = first + r;
      T* const unit = units + r * room;
      query_inverse[r] = unit_query(task, b, unit);
      to_chunks(unit, dim, items.chunks, query);
      const In* row;
      items.scores(query, task.pos_ids + b, 1, task.scale, &row, own_scores + r * own, inverse + r * own);
      for (int64_t k = 0; k < m; ++k) {
        const int64_t* const id = task.extra_ids + b * m + k;
        const int64_t place = r * own + 1 + k;
        items.scores(query, id, 1, task.scale, &row, own_scores + place, inverse + place);
        if (*id < 0) own_scores[place] = -infinity<T>();
      }
    }
    product(ProductTask<T>{units, room, 1, dim, task.columns, panels, scores, panels * kPanel, false}, 0, count);

    for (int64_t r = 0; r < count; ++r) {
      const int64_t b = first + r;
      const bool dead = task.pos_ids[b] < 0;
      T* const row_scores = scores + r * panels * kPanel;
      const T* const given_log_q = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;
      const bool through_log_q = given_log_q || p.normalize_weights || task.curve.log_weights;
      const T* const masked =
          masked_log_q(dead || task.any_padding || (task.excludes && through_log_q), given_log_q, n, log_q,
                       [&](int64_t j) { return dead || task.neg_ids[j] < 0; });
      // A score of −∞ has no mass but counts as a negative, unless its log weight is −∞ too.
      int64_t left_out = 0;
      each_left_out(task, b, [&](int64_t column) {
        row_scores[column] = -infinity<T>();
        if (masked) {
          log_q[column] = -infinity<T>();
        } else {
          ++left_out;
        }
      });
      solve_row(task, kernel, p, b, own_scores + r * own, row_scores, left_out, masked,
                wanted ? task.coefficients + b * own : own_terms,
                wanted ? task.shared_coefficients + (b - task.first_row) * n : terms, row_room);
    }
    if (!wanted) continue;

    product(ProductTask<T>{task.shared_coefficients + (first - task.first_row) * n, n, 1, n, task.rows, dim_panels, sums,
                           room, false},
            0, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t b = first + r;
      const T* const unit = units + r * room;
      T* const target = task.d_queries + b * dim;
      if (task.out.live[b]) {
        fill(d_query, items.chunks.vectors() * kLanes<T>, T(0));
        for (int64_t k = 0; k < own; ++k) {
          const In* const row = items.row(k == 0 ? task.pos_ids[b] : task.extra_ids[b * m + k - 1]);
          items.add(&row, 1, task.coefficients + b * own + k, inverse + r * own + k, d_query);
        }
        from_chunks<In>(d_query, dim, target);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) target[i] += task.scale * sums[r * room + i];
        if (task.normalized) through_normalization(target, unit, query_inverse[r], dim);
      } else {
        fill(target, dim, T(0));
      }
      for (int64_t i = 0; i < dim; ++i) task.unit_queries[b * dim + i] = unit[i];
    }
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
