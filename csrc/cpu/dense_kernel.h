// Negatives of each row's own, out of few items: rather than look up each negative, score all items by a matrix product and
// count how often each is a negative. Included by kernels_impl.h.
#pragma once

#include "draw_kernel.h"
#include "gather.h"
#include "product_kernel.h"
#include "query_row.h"

namespace cw_cpu {
namespace CW_ISA {

// Panels [begin, end) of the table, `count` items, as SharedTask has it.
template <typename In>
void pack_items(const Table<In>& table, int64_t count, bool normalized, typename Compute<In>::type scale, int64_t begin,
                int64_t end, typename Compute<In>::type* columns, typename Compute<In>::type* rows) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  const Gather<In, T> items(table, nullptr, normalized);
  const int64_t dim = table.dim;
  for (int64_t j = begin * kPanel; j < end * kPanel; ++j) {
    T* const column = columns + (j - j % kPanel) * dim + j % kPanel;
    if (j >= count) {
      for (int64_t i = 0; i < dim; ++i) column[i * kPanel] = T(0);
      continue;
    }
    const In* const x = items.row(j);
    const T inverse = normalized ? inverse_norm(squared_norm<In, T>(x, dim)) : T(1);
    for (int64_t i = 0; i < dim; ++i) column[i * kPanel] = load(x[i]) * inverse * scale;
    for (int64_t first = 0; rows && first < dim; first += kPanel) {
      T* const to = rows + first * count + j * kPanel;
      const int64_t some = dim - first < kPanel ? dim - first : kPanel;
#pragma omp simd
      for (int64_t i = 0; i < some; ++i) {
        const T value = load(x[first + i]) * inverse;
        to[i] = is_finite(value) ? value : T(0);
      }
      for (int64_t i = some; i < kPanel; ++i) to[i] = T(0);
    }
  }
}

// Ids looked at at a time.
constexpr int64_t kIds = 256;

// Where an id is counted: item i at 1 + i, padding at 0, and what is out of range at 1 + items.
template <typename Id>
CW_INLINE void places_of(const Id* ids, int64_t n, int64_t items, int32_t* places) {
  using Unsigned = std::make_unsigned_t<Id>;
  const Unsigned last = Unsigned(items + 1);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const Unsigned place = Unsigned(ids[j]) + Unsigned(1);
    places[j] = int32_t(place < last ? place : last);
  }
}

// counts [items + 2] by place.
template <typename Id>
CW_INLINE void count_ids(const Id* ids, int64_t n, int64_t items, int32_t* counts) {
  fill(counts, items + 2, 0);
  for (int64_t first = 0; first < n; first += kIds) {
    int32_t places[kIds];
    const int64_t some = n - first < kIds ? n - first : kIds;
    places_of(ids + first, some, items, places);
    for (int64_t j = 0; j < some; ++j) ++counts[places[j]];
  }
}

// The same where each draw has a log weight: those of −∞ are not counted, but where their id is out of range. In log_q [items]
// the log of the mean weight of an item's draws, or −∞ where there are none. room: 2·(items + 2).
template <typename T, typename Id>
void count_weighted(const Id* ids, const T* draw_log_q, int64_t n, int64_t items, int32_t* counts, T* log_q, T* room) {
  T *const largest = room, *const sums = room + items + 2;
  fill(counts, items + 2, 0);
  fill(largest, items + 2, -infinity<T>());
  fill(sums, items + 2, T(0));
  int32_t places[kIds];
  for (int64_t first = 0; first < n; first += kIds) {
    const int64_t some = n - first < kIds ? n - first : kIds;
    places_of(ids + first, some, items, places);
    for (int64_t j = 0; j < some; ++j) {
      const int32_t place = places[j];
      const T value = draw_log_q[first + j], before = largest[place];
      // Without a branch, which would often be mispredicted. A NaN may be lost here, but not from the sum.
      largest[place] = before > value ? before : value;
      counts[place] += int(value != -infinity<T>()) | int(place > items);
    }
  }
  // Relative to the largest, so that nothing overflows.
  for (int64_t first = 0; first < n; first += kIds) {
    const int64_t some = n - first < kIds ? n - first : kIds;
    places_of(ids + first, some, items, places);
    T weights[kIds];
    for (int64_t j = 0; j < some; ++j) weights[j] = largest[places[j]];
#pragma omp simd
    for (int64_t j = 0; j < some; ++j) {
      const T value = draw_log_q[first + j], weight = exp_nonpositive(value - weights[j]);
      weights[j] = value == -infinity<T>() ? T(0) : weight;
    }
    for (int64_t j = 0; j < some; ++j) sums[places[j]] += weights[j];
  }
#pragma omp simd
  for (int64_t i = 0; i < items; ++i) {
    const T mean = largest[1 + i] + log_(sums[1 + i] / T(counts[1 + i] > 0 ? counts[1 + i] : 1));
    log_q[i] = counts[1 + i] > 0 ? mean : -infinity<T>();
  }
}

// Rows [begin, end), at most dense_step() of them. Returns false, with nothing of use done, if an id is out of range.
// scratch: dense_scratch(I, m, dim); integers: dense_integers(I, draws).
template <typename In, typename Id>
bool dense(const DenseTask<In, Id>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch,
           int32_t* integers) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  Parameters<T> p = make_parameters<T>(task.arguments, task.values.temperature.at(begin));
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t items = task.n, draws = task.ids.n, m = task.m, dim = task.items.dim, rows = end - begin, own = 1 + m;
  const int64_t room = round_up_dim(dim), panels = (items + kPanel - 1) / kPanel, dim_panels = (dim + kPanel - 1) / kPanel;
  const int64_t step = dense_step(items);
  const bool wanted = task.with_gradients;

  // Of `step` rows:
  T* const scores = scratch;                         // [panels·kPanel]
  T* const own_terms = scores + step * panels * kPanel;  // [items], where the coefficients are not kept
  T* const units = own_terms + step * items;         // [room]
  T* const sums = units + step * room;               // [dim_panels·kPanel]
  T* const query_inverse = sums + step * room;       // one number
  // Of one row:
  T* const counts = query_inverse + step;            // [items]
  T* const log_q = counts + items;                   // [items]
  T* const row_room = log_q + items;                 // row_scratch(items); before that, count_weighted()'s
  T* const own_scores = row_room + 4 * items;        // [1 + m], positive and extra positives
  T* const own_coefficients = own_scores + own;      // [1 + m]
  int32_t* const places = integers;                  // [items + 2]
  int32_t* const drawn = places + items + 2;         // [draws]
  uint32_t* const filter = reinterpret_cast<uint32_t*>(drawn + draws);  // [kFilterWords]
  T* const coefficients = task.coefficients ? task.coefficients + (begin - task.first_row) * items : own_terms;

  const auto is_bad = [=](int64_t id) { return id < -1 || id >= items; };
  for (int64_t k = 0; k < rows; ++k) {
    if (is_bad(task.ids.pos[begin + k])) return false;
    for (int64_t e = 0; e < m; ++e) {
      if (is_bad(task.ids.extra[(begin + k) * m + e])) return false;
    }
    query_inverse[k] = unit_query(task.queries + (begin + k) * dim, dim, task.normalized, units + k * room);
  }
  if (task.ids.neg) prefetch_elements(task.ids.neg + begin * draws, draws);
  product(ProductTask<T>{units, room, 1, dim, task.columns, panels, scores, panels * kPanel, false}, 0, rows);

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = begin + r, positive = task.ids.pos[b];
    const int64_t* const extra = task.ids.extra + b * m;
    T* const row_scores = scores + r * panels * kPanel;
    T* const row_coefficients = coefficients + r * items;
    const T* const draw_log_q = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;

    if constexpr (std::is_same_v<Id, int32_t>) {
      if (!task.ids.neg) draw_rows(task.source, draws, b, b + 1, drawn, filter);
    }
    const auto count = [&](const auto* ids) {
      if (draw_log_q) {
        count_weighted(ids, draw_log_q, draws, items, places, log_q, row_room);
      } else {
        count_ids(ids, draws, items, places);
      }
    };
    if (task.ids.neg) {
      count(task.ids.neg + b * draws);
    } else {
      count(drawn);
    }
    if (places[1 + items] > 0) return false;
    if (b + 1 < end) {
      if (task.ids.neg) prefetch_elements(task.ids.neg + (b + 1) * draws, draws);
      if (draw_log_q) prefetch_elements(draw_log_q + task.log_q_stride, draws);
    }

    if (positive < 0) {  // everything is masked
      write_row(task.out, b, RowResult<T>{});
      if (task.out.d_curve) fill(task.out.d_curve + b * (task.curve.last + 1), task.curve.last + 1, T(0));
      if (task.out.above) task.out.above[b] = 0;
      if (wanted) fill(row_coefficients, items, T(0));
      continue;
    }
    own_scores[0] = row_scores[positive];
    for (int64_t e = 0; e < m; ++e) own_scores[1 + e] = extra[e] < 0 ? -infinity<T>() : row_scores[extra[e]];
    int64_t negatives = 0;
#pragma omp simd reduction(+ : negatives)
    for (int64_t i = 0; i < items; ++i) {
      const int32_t times = places[1 + i];
      negatives += times;
      counts[i] = T(times);
      row_scores[i] = times > 0 ? row_scores[i] : -infinity<T>();  // what else they hold must not matter
    }
    const bool through_log_q = draw_log_q || task.item_log_q || p.normalize_weights || task.curve.log_weights;
    if (through_log_q && !draw_log_q) {
      const T* const given = task.item_log_q;
      for (int64_t i = 0; i < items; ++i) log_q[i] = places[1 + i] > 0 ? (given ? given[i] : T(0)) : -infinity<T>();
    }
    const RowResult<T> result = solve_row(task, kernel, p, b, own_scores, row_scores, negatives, counts,
                                          through_log_q ? log_q : nullptr, own_coefficients, row_coefficients, row_room);
    if (!wanted) continue;
    if (task.scale != T(1)) {
#pragma omp simd
      for (int64_t i = 0; i < items; ++i) row_coefficients[i] *= task.scale;
    }
    if (!result.live) continue;
    row_coefficients[positive] += own_coefficients[0];
    for (int64_t e = 0; e < m; ++e) {
      if (extra[e] >= 0) row_coefficients[extra[e]] += own_coefficients[1 + e];
    }
  }
  if (!wanted || !task.d_queries) return true;

  product(ProductTask<T>{coefficients, items, 1, items, task.rows, dim_panels, sums, room, false}, 0, rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = begin + r;
    const T* const unit = units + r * room;
    T* const target = task.d_queries + b * dim;
    for (int64_t i = 0; i < dim; ++i) target[i] = sums[r * room + i];
    if (task.out.live[b]) {
      if (task.normalized) through_normalization(target, unit, query_inverse[r], dim);
    } else {
      fill(target, dim, T(0));
    }
    for (int64_t i = 0; i < dim; ++i) task.unit_queries[b * dim + i] = unit[i];
  }
  return true;
}

// Items [begin, end): through the normalisation where an item has a weight, and into the dtype of the table. unit: [dim].
template <typename In>
void finish_items(const FinishItemsTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* unit) {
  using T = typename Compute<In>::type;
  const int64_t dim = task.dim;
  for (int64_t k = begin; k < end; ++k) {
    T* const sum = task.sums + k * task.stride;
    const In* const item = task.items + k * dim;
    bool any = false;
    for (int64_t i = 0; i < dim; ++i) any |= sum[i] != T(0);
    if (task.normalized && any) {  // an item without a weight may hold anything
      const T inverse = inverse_norm(squared_norm<In, T>(item, dim));
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) unit[i] = load(item[i]) * inverse;
      through_normalization(sum, unit, inverse, dim);
    }
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) store(sum[i], task.gradient[k * dim + i]);
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
