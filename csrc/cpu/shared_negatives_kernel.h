// From embeddings, where all rows share their negatives. Included by kernels_impl.h.
#pragma once

#include "gather.h"
#include "left_out.h"
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

// The query of row b divided by its norm, in `unit` [dim]; the scores of its positive and extra positives and the inverse
// norms of those items, [1 + m] each. `query`: room for a row in the order of chunks. Returns the query's inverse norm.
template <typename In, typename T>
CW_INLINE T positive_scores(const SharedTask<In>& task, const Gather<In, T>& items, int64_t b, T* unit, T* query, T* scores,
                            T* inverse) {
  const int64_t dim = items.table.dim;
  const T query_inverse = unit_query(task.queries + b * dim, dim, task.normalized, unit);
  to_chunks(unit, dim, items.chunks, query);
  items.score(query, task.pos_ids[b], task.scale, scores, inverse);
  for (int64_t k = 0; k < task.m; ++k) {
    const int64_t id = task.extra_ids[b * task.m + k];
    items.score(query, id, task.scale, scores + 1 + k, inverse + 1 + k);
    if (id < 0) scores[1 + k] = -infinity<T>();
  }
  return query_inverse;
}

// The gradient of row b's query from its coefficients and from `sums` [dim], to be multiplied by `factor`: over the shared
// negatives, of rows of the table times coefficients. Overwrites `inverse`. `room`: for a row in the order of chunks.
template <typename In, typename T>
CW_INLINE void query_gradient(const SharedTask<In>& task, const Gather<In, T>& items, int64_t b, T* inverse,
                              const T* sums, T factor, const T* unit, T query_inverse, T* room) {
  const int64_t dim = items.table.dim, own = 1 + task.m;
  T* const target = task.d_queries + b * dim;
  if (task.out.live[b]) {
    fill(room, items.chunks.vectors() * kLanes<T>, T(0));
    for (int64_t k = 0; k < own; ++k) {
      const In* row = items.row(k == 0 ? task.pos_ids[b] : task.extra_ids[b * task.m + k - 1]);
      items.weigh(task.coefficients + b * own + k, 1, inverse + k, &row);
      items.add(&row, 1, inverse + k, room);
    }
    from_chunks<In>(room, dim, target);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) target[i] += factor * sums[i];
    if (task.normalized) through_normalization(target, unit, query_inverse, dim);
  } else {
    fill(target, dim, T(0));
  }
  for (int64_t i = 0; i < dim; ++i) task.unit_queries[b * dim + i] = unit[i];
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
      query_inverse[r] =
          positive_scores(task, items, b, units + r * room, query, own_scores + r * own, inverse + r * own);
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
      solve_row(task, kernel, p, b, own_scores + r * own, row_scores, n - left_out, nullptr, masked,
                wanted ? task.coefficients + b * own : own_terms,
                wanted ? task.shared_coefficients + (b - task.first_row) * n : terms, row_room);
    }
    if (!wanted) continue;

    product(ProductTask<T>{task.shared_coefficients + (first - task.first_row) * n, n, 1, n, task.rows, dim_panels, sums,
                           room, false},
            0, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t b = first + r;
      query_gradient(task, items, b, inverse + r * own, sums + r * room, task.scale, units + r * room, query_inverse[r],
                     d_query);
    }
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
