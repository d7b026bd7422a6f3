// One row whose negatives come a chunk at a time, for forms of the loss in which the gradient of a score is its term times one
// number of its row (slope_is_constant()). Included by kernels_impl.h.
#pragma once

#include "row_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

// The sums over the chunks so far, in fp64 as over the blocks of a row.
template <typename T>
struct RunningRow {
  LogSum<T, double> negatives;
  LogSum<T, double> denominator;
  int64_t n_eff;
  int64_t above;
  bool non_finite;
};

template <typename T>
CW_INLINE RunningRow<T> without_chunks() {
  return {{-infinity<T>(), 0}, {-infinity<T>(), 0}, 0, 0, false};
}

// Adds a chunk. Its terms, relative to the largest exponent from now on, are left in `terms`, which may be the scores. Returns
// what makes earlier terms relative to that. `denominator`: the chunk's, where it is known, or null. scratch: [chunk.n].
template <typename T, Weighting W>
T add_chunk(const Row<T>& chunk, const Parameters<T>& p, const LogSum<T>* denominator_of_all, RunningRow<T>& row, T* terms,
            T* scratch) {
  constexpr Surrogate S = Surrogate::exp;
  if (chunk.above) row.above += count_above(chunk);
  row.n_eff += chunk.negatives;
  if (chunk.log_q) row.n_eff -= count_masked(chunk.log_q, chunk.counts, chunk.n);
  if (denominator_of_all) {
    add_to(row.denominator, *denominator_of_all);
  } else if (chunk.log_q || p.normalize_weights) {
    add_to(row.denominator, denominator<T, W>(chunk, p, scratch));
  }
  const auto add_terms = [&](auto elements) CW_INLINE_LAMBDA {
    const T before = row.negatives.max;
    const T own = largest_exponent<T, W, S>(elements, p, terms, row.non_finite);
    const T max = own > before ? own : before;
    const T rescale = max == -infinity<T>() ? T(1) : relative_to(before, max);
    row.negatives = {max, row.negatives.sum * rescale + sum_terms<T, W, S, false>(elements, nullptr, p, max, terms)};
    return rescale;
  };
  if (chunk.log_q) return add_terms(Elements<T, true>{chunk.neg, chunk.log_q, chunk.n, chunk.pos});
  return add_terms(Elements<T, false>{chunk.neg, nullptr, chunk.n, chunk.pos});
}

// The row's result after its last chunk; `row` without negatives. Leaves the gradients of the positives' scores, and by what
// the terms have to be multiplied to be those of the negatives'.
template <typename T, Weighting W>
RowResult<T> finish_chunks(const Row<T>& row, const Parameters<T>& p, const RunningRow<T>& so_far,
                           RowGradients<T>& gradients, T& factor) {
  constexpr Surrogate S = Surrogate::exp;
  RowSums<T> sums{};
  sums.pos = row.pos;
  sums.values = row.values;
  sums.n_eff = so_far.n_eff;
  sums.non_finite = so_far.non_finite;
  sums.negatives = {so_far.negatives.max, T(so_far.negatives.sum)};
  sums.has_denominator = so_far.denominator.max != -infinity<T>();
  sums.denominator = {so_far.denominator.max, T(so_far.denominator.sum)};
  sum_positives<T, W, S>(row, p, gradients.extra, sums);
  const RowResult<T> result = finish_row(sums, p);
  if (!gradients.wanted) return result;
  if (!(result.loss == result.loss) || !result.live) {
    factor = gradients.pos = result.live ? not_a_number<T>() : T(0);
    fill(gradients.extra, row.m, factor);
    return result;
  }
  factor = result.by_log_a / sums.negatives.sum * p.inv_tau;
  const T of_positives = positives_gradient<T, W, S>(row, p, sums, result, gradients.extra);
  gradients.pos = result.by_pos - (result.by_log_a * p.inv_tau + of_positives);
  return result;
}

template <typename T>
struct ChunkedRow {
  T (*add)(const Row<T>&, const Parameters<T>&, const LogSum<T>*, RunningRow<T>&, T*, T*);
  RowResult<T> (*finish)(const Row<T>&, const Parameters<T>&, const RunningRow<T>&, RowGradients<T>&, T&);
  LogSum<T> (*denominator)(const Row<T>&, const Parameters<T>&, T*);
};

template <typename T>
ChunkedRow<T> choose_chunked_row(Weighting weighting) {
  switch (weighting) {
#define CW_CASE(name)    \
  case Weighting::name:  \
    return {add_chunk<T, Weighting::name>, finish_chunks<T, Weighting::name>, denominator<T, Weighting::name>};
    CW_WEIGHTINGS(CW_CASE)
#undef CW_CASE
  }
  return {};
}

}  // namespace CW_ISA
}  // namespace cw_cpu
