// The CPU kernels, compiled once per instruction set. No standard containers or algorithms here, whose instantiations for
// one instruction set the linker could hand to another.
//
// Included by kernels_*.cpp with CW_ISA set to the namespace to define, and CW_VECTOR_BYTES to the width of a register.

#include "../cw_row.h"
#include "draw_kernel.h"
#include "dtypes.h"
#include "gather.h"
#include "kernels.h"
#include "simd.h"
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

// ---- long sums ------------------------------------------------------------------------------------------------------

// A sum of many terms in three parts, so that small terms are not lost beside a large sum: `sum` of the latest pairs, `high`
// of those before, and `low` of what was rounded away where `sum` was added to `high` (Knuth's TwoSum).
template <typename T>
struct LongSums {
  T* sum;
  T* high;
  T* low;
};

// Moves `sum` [vectors] into `high` and `low`, which are not set yet where it is the first.
template <typename T>
CW_INLINE void carry_over(const LongSums<T>& x, bool first, int vectors) {
  const Lanes<T> zero = {};
  for (int v = 0; v < vectors; ++v) {
    const int64_t place = v * kLanes<T>;
    const Lanes<T> sum = load_vector<Lanes<T>>(x.sum + place);
    store_vector(x.sum + place, zero);
    if (first) {
      store_vector(x.high + place, sum);
      store_vector(x.low + place, zero);
      continue;
    }
    const Lanes<T> high = load_vector<Lanes<T>>(x.high + place);
    const Lanes<T> total = high + sum, added = total - high;
    const Lanes<T> lost = (high - (total - added)) + (sum - added);
    store_vector(x.high + place, total);
    store_vector(x.low + place, load_vector<Lanes<T>>(x.low + place) + lost);
  }
}

// `high` [n] and what was rounded away: what was, beside a sum that is not finite, is no number.
template <typename T>
CW_INLINE void add_low(const LongSums<T>& x, int64_t n, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x.high[i] + (is_finite(x.low[i]) ? x.low[i] : T(0));
}

// ---- level 1 --------------------------------------------------------------------------------------------------------

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
    row.prior = task.prior.at(b);
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

// ---- level 2 --------------------------------------------------------------------------------------------------------

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
  const Row<T> row{own_scores[0], neg_scores, task.n, left_out, own_scores + 1, task.m, log_q, task.prior.at(b),
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

// Items whose sum is made before it is added to a query's gradient.
constexpr int64_t kItemsPerSum = 512;

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

  // All [1 + m + n] in the coefficients' layout: positive, extra positives, negatives.
  T* const score = scratch;
  T* const inverse = score + width;
  T* const log_q = inverse + width;
  T* const row_scratch = log_q + width;  // [n]
  T* const own_coefficients = row_scratch + width;
  T* const unit = own_coefficients + width;        // [dim]
  T* const query = unit + round_up_dim(dim);       // [padded_dim], in the order of chunks
  T* const d_query = query + round_up_dim(dim);    // 3 times [padded_dim], likewise
  const LongSums<T> sums{d_query, d_query + round_up_dim(dim), d_query + 2 * round_up_dim(dim)};

  for (int64_t b = begin; b < end; ++b) {
    const int64_t* const pos_id = task.ids.pos + b;
    const int64_t* const extra_ids = task.ids.extra + b * m;
    const Id* const neg_ids = task.ids.negatives_of(b);

    const T query_inverse = unit_query(task, b, unit);
    if (*pos_id < 0) {  // all is masked: nothing of the table is read
      write_row(task.out, b, RowResult<T>{});
      if (task.out.d_log_q) fill(task.out.d_log_q + b * n, n, T(0));
      if (!wanted) continue;
      fill(coefficients + (b - begin) * width, width, T(0));
      for (int64_t i = 0; task.d_queries && i < dim; ++i) {
        task.d_queries[b * dim + i] = T(0);
        task.unit_queries[b * dim + i] = unit[i];
      }
      continue;
    }
    to_chunks(unit, dim, items.chunks, query);

    items.scores(query, pos_id, 1, task.scale, item_rows, score, inverse);
    items.scores(query, extra_ids, m, task.scale, item_rows + 1, score + 1, inverse + 1);
    items.scores(query, neg_ids, n, task.scale, item_rows + 1 + m, score + 1 + m, inverse + 1 + m);
    for (int64_t k = 0; k < m; ++k) {
      if (extra_ids[k] < 0) score[1 + k] = -infinity<T>();
    }
    Id smallest = 0;
#pragma omp simd reduction(min : smallest)
    for (int64_t j = 0; j < n; ++j) smallest = neg_ids[j] < smallest ? neg_ids[j] : smallest;
    // Of some rows alone, as the ids are.
    const T* const given_log_q = task.log_q ? task.log_q + (b - task.ids.first) * task.log_q_stride : nullptr;

    const T* const masked = masked_log_q(smallest < 0, given_log_q, n, log_q,
                                         [=](int64_t j) { return neg_ids[j] < 0; });
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
      fill(sums.sum, padded_dim, T(0));
      if (width <= kItemsPerSum) {
        items.add(item_rows, width, row_coefficients, inverse, sums.sum);
      } else {
        for (int64_t j = 0; j < width; j += kItemsPerSum) {
          const int64_t count = width - j < kItemsPerSum ? width - j : kItemsPerSum;
          items.add(item_rows + j, count, row_coefficients + j, inverse + j, sums.sum);
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
  T* const own_scores = sums + step * room;           // [1 + m], positive and extra positives
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

// A fresh sum is begun after so many pairs of a bucket for each item among them, which bounds the roundings of a sum; and
// after so many in any case, where one item has most of them.
constexpr int64_t kPairsPerSum = 256;
constexpr int64_t kMostPairsPerSum = 4096;

// The sums [kItemsPerBucket, padded_dim] of bucket k, elements [slice, slice + vectors·kLanes). `carried`: the items whose
// sums have a high part already; on return those that have one. Returns which items have a pair with a weight.
template <typename In, typename T>
CW_INLINE uint64_t add_bucket(const ItemGradientTask<In>& task, int64_t k, int64_t slice, int vectors,
                              const LongSums<T>& sums, uint64_t& carried) {
  const PairGrid& grid = task.grid;
  const int64_t padded_dim = task.padded_dim;
  const T* const coefficients = task.coefficients;
  const PairKey* const keys = task.keys;
  T* const first_sum = sums.sum + slice;
  uint64_t weighed = 0, fresh = 0;  // items with a weight at all, and in the latest sum
  int64_t pairs = 0, check = kPairsPerSum, blocks_left = grid.blocks_at_once;
  const auto carry = [&]() CW_INLINE_LAMBDA {
    for (uint64_t left = fresh; left != 0; left &= left - 1) {
      const int64_t item = __builtin_ctzll(left), place = item * padded_dim + slice;
      carry_over(LongSums<T>{sums.sum + place, sums.high + place, sums.low + place}, !(carried >> item & 1), vectors);
    }
    weighed |= fresh;
    carried |= fresh;
    fresh = 0;
    pairs = 0;
    check = kPairsPerSum;
  };
  for (int64_t block = 0; block < grid.blocks; ++block) {
    const int32_t* const ends = task.ends + block * grid.buckets;
    const int64_t base = block * grid.pairs_per_block();
    const int64_t last = base + ends[k];
    const T* const sources = task.sources + block * grid.rows_per_block * padded_dim + slice;
    if (block + 1 < grid.blocks) {
      const int64_t next = base + grid.pairs_per_block() + (k > 0 ? ends[grid.buckets + k - 1] : 0);
      __builtin_prefetch(task.keys + next);
      __builtin_prefetch(task.coefficients + next);
    }
    int64_t e = base + (k > 0 ? ends[k - 1] : 0);
    while (e < last) {
      const int64_t stop = last - e < check - pairs ? last : e + (check - pairs);
      pairs += stop - e;
      uint64_t met = 0;  // in a register: `fresh` is written to in carry()
      for (; e < stop; ++e) {
        const T factor = coefficients[e];
        if (factor == T(0)) continue;  // its source may hold NaN
        const PairKey key = keys[e];
        const int item = item_of(key);
        T* const to = first_sum + item * padded_dim;
        const T* const from = sources + row_of(key) * padded_dim;
        met |= uint64_t(1) << item;
        if (vectors == kSlice / kLanes<T>) {
          add_scaled(to, from, factor, int(kSlice / kLanes<T>));
        } else {
          add_scaled(to, from, factor, vectors);
        }
      }
      fresh |= met;
      if (pairs < check) continue;
      if (pairs >= kMostPairsPerSum || pairs >= kPairsPerSum * __builtin_popcountll(fresh)) {
        carry();
      } else {
        check += kPairsPerSum;
      }
    }
    // Where level 3 begins another part: the same sums, whether the ids are given or drawn.
    if (--blocks_left == 0) {
      blocks_left = grid.blocks_at_once;
      if (block + 1 < grid.blocks) carry();
    }
  }
  if (carried != 0 || task.after_high) carry();
  return weighed | fresh;
}

// scratch: item_gradient_scratch(dim). Buckets [begin, end): each is one thread's, and goes through its pairs in the order
// of their rows, so the sums have one order whatever the threads.
template <typename In>
void item_gradient(const ItemGradientTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const int64_t dim = task.dim, padded_dim = task.padded_dim, room = kItemsPerBucket * padded_dim;
  const LongSums<T> sums{scratch, scratch + room, scratch + 2 * room};
  T* const unit = scratch + 3 * room;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first_item = k * kItemsPerBucket;
    const int64_t items = task.num_items - first_item < kItemsPerBucket ? task.num_items - first_item : kItemsPerBucket;
    fill(sums.sum, room, T(0));
    uint64_t weighed = 0;  // which of the bucket's items have a sum that may not be 0
    uint64_t carried_before = 0, carried = 0;
    for (int64_t i = 0; task.before_high && i < items; ++i) {
      const T* const high = task.before_high + (first_item + i) * dim;
      const T* const low = task.before_low ? task.before_low + (first_item + i) * dim : nullptr;
      T any = 0;
#pragma omp simd reduction(+ : any)
      for (int64_t d = 0; d < dim; ++d) {
        any += high[d] == T(0) ? T(0) : T(1);
        sums.high[i * padded_dim + d] = high[d];
      }
      fill(sums.high + i * padded_dim + dim, padded_dim - dim, T(0));
      fill(sums.low + i * padded_dim, padded_dim, T(0));
      for (int64_t d = 0; low && d < dim; ++d) sums.low[i * padded_dim + d] = low[d];
      weighed |= uint64_t(any != T(0)) << i;
      carried_before |= uint64_t(1) << i;
    }
    for (int64_t slice = 0; slice < padded_dim; slice += kSlice) {
      carried = carried_before;
      if (padded_dim - slice >= kSlice) {
        weighed |= add_bucket(task, k, slice, int(kSlice / kLanes<T>), sums, carried);
      } else {
        weighed |= add_bucket(task, k, slice, int((padded_dim - slice) / kLanes<T>), sums, carried);
      }
    }
    for (int64_t i = 0; i < items; ++i) {
      T* const sum = sums.sum + i * padded_dim;
      T* const high = sums.high + i * padded_dim;
      T* const low = sums.low + i * padded_dim;
      const bool has_carried = carried >> i & 1;
      const int64_t place = (first_item + i) * dim;
      if (task.after_high) {
        // An item that no pair had has 0 in its latest sum.
        const T* const from_high = has_carried ? high : sum;
        const T* const from_low = has_carried ? low : sum;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) task.after_high[place + d] = from_high[d];
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) task.after_low[place + d] = from_low[d];
        continue;
      }
      if (has_carried) add_low(LongSums<T>{sum, high, low}, dim, sum);
      if (task.normalized && (weighed >> i & 1)) {
        const In* const item = task.items + place;
        const T inverse = inverse_norm(squared_norm<In, T>(item, dim));
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) unit[d] = load(item[d]) * inverse;
        through_normalization(sum, unit, inverse, dim);
      }
      In* const target = task.gradient + place;
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
