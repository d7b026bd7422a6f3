// The CPU kernels, compiled once per instruction set. No standard containers or algorithms here, whose instantiations for
// one instruction set the linker could hand to another.
//
// Included by kernels_*.cpp with CW_ISA set to the namespace to define, and CW_VECTOR_BYTES to the width of a register.

#include "../cw_row.h"
#include "draw_kernel.h"
#include "elements.h"
#include "gather.h"
#include "kernels.h"
#include "lanes.h"
#include "product_kernel.h"
#include "row_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

template <typename T>
CW_INLINE T at_row(const RowValue<T>& x, int64_t row) {
  return x.rows ? x.rows[row * x.stride] : x.value;
}

template <typename T>
CW_INLINE void write_row(const RowResults<T>& out, int64_t b, const RowResult<T>& result) {
  out.loss[b] = result.loss;
  out.live[b] = result.live;
  if (out.d_prior) out.d_prior[b] = result.by_prior;
  if (out.d_threshold) out.d_threshold[b] = result.by_threshold;
}

// ---- level 1 -------------------------------------------------------------------------------------------------------

// scratch: scores_scratch(n, m).
template <typename In>
void scores(const ScoresTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const Parameters<T> p = make_parameters<T>(task.arguments);
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t width = task.n + task.m;
  T* const converted = scratch;             // [n + m], scores that come in another type
  T* const own_terms = converted + width;   // [n + m], where no gradients are wanted
  T* const row_scratch = own_terms + width; // [n]
  for (int64_t b = begin; b < end; ++b) {
    Row<T> row;
    row.pos = load(task.pos[b * task.pos_stride]);
    row.neg = in_compute_type(task.neg + b * task.neg_stride, task.n, converted);
    row.n = task.n;
    row.left_out = 0;
    row.extra = in_compute_type(task.extra + b * task.extra_stride, task.m, converted + task.n);
    row.m = task.m;
    row.log_q = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;
    row.prior = at_row(task.prior, b);
    row.threshold = at_row(task.threshold, b);
    RowGradients<T> gradients;
    gradients.wanted = task.d_pos != nullptr;
    gradients.neg = gradients.wanted ? task.d_neg + b * task.n : own_terms;
    gradients.extra = gradients.wanted ? task.d_extra + b * task.m : own_terms + task.n;
    gradients.log_q = task.out.d_log_q ? task.out.d_log_q + b * task.n : nullptr;
    const RowResult<T> result = kernel(row, p, gradients, row_scratch);
    write_row(task.out, b, result);
    if (gradients.wanted) task.d_pos[b] = gradients.pos;
  }
}

template <typename In>
void scale_rows(const ScaleRowsTask<In>& task, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const auto* const x = task.x + b * task.width;
    const auto factor = task.factor[b];
    In* const out = task.out + b * task.width;
#pragma omp simd
    for (int64_t j = 0; j < task.width; ++j) store(x[j] * factor, out[j]);
  }
}

// ---- level 2 -------------------------------------------------------------------------------------------------------

template <typename In>
void inverse_norms(const In* x, int64_t dim, typename Compute<In>::type* out, int64_t begin, int64_t end) {
  using T = typename Compute<In>::type;
  for (int64_t i = begin; i < end; ++i) out[i] = inverse_norm(squared_norm<In, T>(x + i * dim, dim));
}

// The row's log weights, with −∞ for what padding masks; `room` [n] holds them where they are not those given.
// absent(j): whether negative j is padding.
template <typename T, typename Absent>
CW_INLINE const T* masked_log_q(bool any, const T* given, int64_t n, T* room, Absent absent) {
  if (!any) return given;
  for (int64_t j = 0; j < n; ++j) room[j] = absent(j) ? -infinity<T>() : (given ? given[j] : T(0));
  return room;
}

// The query of row b over its norm (dot: itself), in `unit` [dim]. Returns what it was multiplied by.
template <typename In, typename T>
CW_INLINE T unit_query(const QueryTask<In>& task, int64_t b, T* unit) {
  const int64_t dim = task.items.dim;
  const In* const query = task.queries + b * dim;
  const T inverse = task.normalized ? inverse_norm(squared_norm<In, T>(query, dim)) : T(1);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) unit[i] = load(query[i]) * inverse;
  return inverse;
}

// Row b from its scores, own_scores [1 + m] of the positives and neg_scores [n]. Leaves dloss/dscore · scale of the former
// in own_coefficients and dloss/dscore of the latter in neg_coefficients.
template <typename In, typename T>
CW_INLINE RowResult<T> solve_row(const QueryTask<In>& task, RowKernel<T> kernel, const Parameters<T>& p, int64_t b,
                                 const T* own_scores, const T* neg_scores, int64_t left_out, const T* log_q,
                                 T* own_coefficients, T* neg_coefficients, T* scratch) {
  const Row<T> row{own_scores[0], neg_scores, task.n, left_out, own_scores + 1, task.m, log_q, at_row(task.prior, b),
                   at_row(task.threshold, b)};
  RowGradients<T> gradients;
  gradients.wanted = task.with_gradients;
  gradients.neg = neg_coefficients;
  gradients.extra = own_coefficients + 1;
  gradients.log_q = task.out.d_log_q ? task.out.d_log_q + b * task.n : nullptr;
  const RowResult<T> result = kernel(row, p, gradients, scratch);
  write_row(task.out, b, result);
  if (!gradients.wanted) return result;
  own_coefficients[0] = gradients.pos;
  for (int64_t k = 0; k < 1 + task.m; ++k) own_coefficients[k] *= task.scale;
  return result;
}

// coefficients: of rows [begin, end), or null. item_rows: [1 + m + n]. scratch: embeddings_scratch(n, m, dim).
template <typename In, typename Id>
void embeddings(const EmbeddingsTask<In, Id>& task, int64_t begin, int64_t end, typename Compute<In>::type* coefficients,
                const In** item_rows, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const Parameters<T> p = make_parameters<T>(task.arguments);
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t n = task.n, m = task.m, dim = task.items.dim, width = 1 + m + n;
  const Gather<In, T> items(task.items, task.inverse_norms, task.normalized);
  const int64_t padded_dim = items.chunks.vectors() * kLanes<T>;
  const bool wanted = coefficients != nullptr;

  // All [1 + m + n] in the coefficients' layout: positive, further positives, negatives.
  T* const score = scratch;
  T* const inverse = score + width;
  T* const log_q = inverse + width;
  T* const row_scratch = log_q + width;  // [n]
  T* const own_coefficients = row_scratch + width;
  T* const unit = own_coefficients + width;        // [dim]
  T* const query = unit + round_up_dim(dim);       // [padded_dim], in the order of chunks
  T* const d_query = query + round_up_dim(dim);    // [padded_dim], likewise

  for (int64_t b = begin; b < end; ++b) {
    const int64_t* const pos_id = task.ids.pos + b;
    const int64_t* const extra_ids = task.ids.extra + b * m;
    const Id* const neg_ids = task.ids.negatives_of(b);

    const T query_inverse = unit_query(task, b, unit);
    to_chunks(unit, dim, items.chunks, query);

    items.scores(query, pos_id, 1, task.scale, item_rows, score, inverse);
    items.scores(query, extra_ids, m, task.scale, item_rows + 1, score + 1, inverse + 1);
    items.scores(query, neg_ids, n, task.scale, item_rows + 1 + m, score + 1 + m, inverse + 1 + m);
    for (int64_t k = 0; k < m; ++k) {
      if (extra_ids[k] < 0) score[1 + k] = -infinity<T>();
    }
    Id smallest = *pos_id < 0 ? -1 : 0;
#pragma omp simd reduction(min : smallest)
    for (int64_t j = 0; j < n; ++j) smallest = neg_ids[j] < smallest ? neg_ids[j] : smallest;
    // Of some rows alone, as the ids are.
    const T* const given_log_q = task.log_q ? task.log_q + (b - task.ids.first) * task.log_q_stride : nullptr;

    const T* const masked = masked_log_q(smallest < 0, given_log_q, n, log_q,
                                         [=](int64_t j) { return neg_ids[j] < 0 || *pos_id < 0; });
    T* const row_coefficients = wanted ? coefficients + (b - begin) * width : own_coefficients;
    T* const neg_coefficients = row_coefficients + 1 + m;
    const RowResult<T> result = solve_row(task, kernel, p, b, score, score + 1 + m, 0, masked, row_coefficients,
                                          neg_coefficients, row_scratch);
    if (!wanted) continue;

#pragma omp simd
    for (int64_t j = 0; j < n; ++j) neg_coefficients[j] *= task.scale;
    if (!task.d_queries) continue;
    T* const target = task.d_queries + b * dim;
    if (result.live) {
      fill(d_query, padded_dim, T(0));
      items.add(item_rows, width, row_coefficients, inverse, d_query);
      from_chunks<In>(d_query, dim, target);
      if (task.normalized) through_normalization(target, unit, query_inverse, dim);
    } else {
      fill(target, dim, T(0));
    }
    for (int64_t i = 0; i < dim; ++i) task.unit_queries[b * dim + i] = unit[i];
  }
}

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
  if (!task.first_column) return;
  const auto columns_of = [&](int64_t item) {
    for (int32_t c = task.first_column[item]; c >= 0; c = task.next_column[c]) visit(c);
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
  const Parameters<T> p = make_parameters<T>(task.arguments);
  const RowKernel<T> kernel = choose_row_kernel(p);
  const Gather<In, T> items(task.items, nullptr, task.normalized);
  const int64_t n = task.n, m = task.m, dim = task.items.dim, step = shared_step(n), own = 1 + m;
  const int64_t room = round_up_dim(dim), panels = (n + kPanel - 1) / kPanel, dim_panels = (dim + kPanel - 1) / kPanel;
  const bool wanted = task.with_gradients;

  // Of `step` rows:
  T* const scores = scratch;                          // [panels·kPanel]
  T* const units = scores + step * panels * kPanel;   // [dim]
  T* const sums = units + step * room;                // [dim_panels·kPanel]
  T* const own_scores = sums + step * room;           // [1 + m], positive and further positives
  T* const inverse = own_scores + step * own;         // [1 + m]
  T* const query_inverse = inverse + step * own;      // one number
  // Of one row:
  T* const log_q = query_inverse + step;              // [n]
  T* const row_scratch = log_q + n;                   // [n]
  T* const terms = row_scratch + n;                   // [n], where no gradients are wanted
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
      const bool through_log_q = given_log_q || p.normalize_weights;
      const T* const masked =
          masked_log_q(dead || task.any_padding || (task.first_column && through_log_q), given_log_q, n, log_q,
                       [&](int64_t j) { return dead || task.neg_ids[j] < 0; });
      // A score of −∞ has no mass but counts, unless a log weight says that the negative is not there.
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
                wanted ? task.shared_coefficients + (b - task.first_row) * n : terms, row_scratch);
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

// Elements of a gradient's row in work at a time: a bucket of them, and the sources' that a block names, stay in L1.
constexpr int64_t kSlice = 64;

// to [vectors] += factor · from
template <typename T>
CW_INLINE void add_scaled(T* to, const T* from, T factor, int vectors) {
  for (int v = 0; v < vectors; ++v) {
    const Lanes<T> sum = load_vector<Lanes<T>>(to + v * kLanes<T>) + load_vector<Lanes<T>>(from + v * kLanes<T>) * factor;
    store_vector(to + v * kLanes<T>, sum);
  }
}

// scratch: item_gradient_scratch(dim). Buckets [begin, end): each is one thread's, and goes through its pairs in the order
// of their rows, so the sums have one order whatever the threads.
template <typename In>
void item_gradient(const ItemGradientTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const PairGrid& grid = task.grid;
  const int64_t dim = task.dim, padded_dim = task.padded_dim;
  T* const sums = scratch;  // [kItemsPerBucket, padded_dim]
  T* const unit = scratch + kItemsPerBucket * padded_dim;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first_item = k * kItemsPerBucket;
    const int64_t items = task.num_items - first_item < kItemsPerBucket ? task.num_items - first_item : kItemsPerBucket;
    fill(sums, kItemsPerBucket * padded_dim, T(0));
    uint64_t weighed = 0;  // which of the bucket's items have a sum that may not be 0
    for (int64_t i = 0; task.before && i < items; ++i) {
      const T* const before = task.before + (first_item + i) * dim;
      T* const sum = sums + i * padded_dim;
      bool any = false;
      for (int64_t d = 0; d < dim; ++d) {
        sum[d] = before[d];
        any |= !(before[d] == T(0));
      }
      weighed |= uint64_t(any) << i;
    }
    for (int64_t slice = 0; slice < padded_dim; slice += kSlice) {
      const int vectors = int((padded_dim - slice < kSlice ? padded_dim - slice : kSlice) / kLanes<T>);
      for (int64_t block = 0; block < grid.blocks; ++block) {
        const int32_t* const ends = task.ends + block * grid.buckets;
        const int64_t base = block * grid.pairs_per_block();
        const int64_t first = base + (k > 0 ? ends[k - 1] : 0), last = base + ends[k];
        const T* const sources = task.sources + block * grid.rows_per_block * padded_dim + slice;
        if (block + 1 < grid.blocks) {
          const int64_t next = base + grid.pairs_per_block() + (k > 0 ? ends[grid.buckets + k - 1] : 0);
          __builtin_prefetch(task.keys + next);
          __builtin_prefetch(task.coefficients + next);
        }
        for (int64_t e = first; e < last; ++e) {
          const T factor = task.coefficients[e];
          if (factor == T(0)) continue;  // its source may hold NaN
          const int item = item_of(task.keys[e]);
          T* const to = sums + item * padded_dim + slice;
          const T* const from = sources + row_of(task.keys[e]) * padded_dim;
          weighed |= uint64_t(1) << item;
          if (vectors == kSlice / kLanes<T>) {
            add_scaled(to, from, factor, int(kSlice / kLanes<T>));
          } else {
            add_scaled(to, from, factor, vectors);
          }
        }
      }
    }
    for (int64_t i = first_item; i < first_item + items; ++i) {
      T* const sum = sums + (i - first_item) * padded_dim;
      if (task.after) {
        for (int64_t d = 0; d < dim; ++d) task.after[i * dim + d] = sum[d];
        continue;
      }
      if (task.normalized && (weighed >> (i - first_item) & 1)) {
        const In* const item = task.items + i * dim;
        const T inverse = inverse_norm(squared_norm<In, T>(item, dim));
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) unit[d] = load(item[d]) * inverse;
        through_normalization(sum, unit, inverse, dim);
      }
      In* const target = task.gradient + i * dim;
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) store(sum[d], target[d]);
    }
  }
}

#define CW_INSTANTIATE(In)                                                                                           \
  template void scores<In>(const ScoresTask<In>&, int64_t, int64_t, Compute<In>::type*);                             \
  template void scale_rows<In>(const ScaleRowsTask<In>&, int64_t, int64_t);                                          \
  template void embeddings<In, int32_t>(                                                                             \
      const EmbeddingsTask<In, int32_t>&, int64_t, int64_t, Compute<In>::type*, const In**, Compute<In>::type*);     \
  template void embeddings<In, int64_t>(                                                                             \
      const EmbeddingsTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*, const In**, Compute<In>::type*);     \
  template void pack_shared<In>(const SharedTask<In>&, int64_t, int64_t);                                            \
  template void shared_negatives<In>(const SharedTask<In>&, int64_t, int64_t, Compute<In>::type*);                   \
  template void inverse_norms<In>(const In*, int64_t, Compute<In>::type*, int64_t, int64_t);                         \
  template void item_gradient<In>(const ItemGradientTask<In>&, int64_t, int64_t, Compute<In>::type*);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(Half)
CW_INSTANTIATE(BFloat16)
template void look_up<float>(const float*, const int32_t*, int64_t, float*);
template void look_up<double>(const double*, const int32_t*, int64_t, double*);
template void product<float>(const ProductTask<float>&, int64_t, int64_t);
template void product<double>(const ProductTask<double>&, int64_t, int64_t);

}  // namespace CW_ISA
}  // namespace cw_cpu
