// One row: its loss, and the gradient of each of its scores. Included by kernels_impl.h.
#pragma once

#include "../cw_row.h"
#include "kernels.h"
#include "simd.h"

namespace cw_cpu {
namespace CW_ISA {

using namespace CW_NAMESPACE;

// Sums are made in blocks: within a block in the compute type, over the blocks in fp64.
constexpr int64_t kBlock = 1024;

CW_INLINE int64_t block_end(int64_t begin, int64_t n) { return begin + kBlock < n ? begin + kBlock : n; }

template <typename T>
struct Row {
  T pos;
  const T* neg;  // [N]
  int64_t n;
  int64_t negatives;  // how many they are: fewer than n if some, with a score of −∞, are not negatives at all; or Σ counts
  const T* counts;    // [N], how often each is a negative, or null: once. 0 goes with a score of −∞, and a log weight of −∞
  const T* extra;  // [M]
  int64_t m;
  const T* log_q;  // [N] or null
  cw_ext::RowArguments values;
  bool own_temperature;  // whose gradient is wanted
  const Curve<T>* curve;  // whose values in this row are the next
  const T* curve_values;  // [K] or null: no curve
  int64_t* above;         // or null
};

template <typename T>
struct RowGradients {
  T pos;
  T* neg;      // [N], never null: the terms of the sum are kept here too
  T* extra;    // [M], likewise
  T* log_q;    // [N] or null
  T* curve;    // [K] or null
  bool wanted;
};

// A surrogate's exponent costs a logarithm: it is computed once and kept. That of exp is computed again where it is used.
constexpr bool is_costly(Surrogate s) { return s != Surrogate::exp; }

// The scores [n] of a row, or of its extra positives.
template <typename T, bool HasLogQ>
struct Elements {
  const T* scores;
  const T* log_q;
  int64_t n;
  T pos;
  CW_INLINE T log_q_of(int64_t j) const { return HasLogQ ? log_q[j] : T(0); }
};

// The largest exponent, and whether an element makes the row NaN. Costly exponents are left in `terms`.
template <typename T, Weighting W, Surrogate S, bool HasLogQ>
T largest_exponent(const Elements<T, HasLogQ> x, const Parameters<T>& parameters, T* terms, bool& non_finite) {
  const Parameters<T> p = parameters;  // in registers: a select between two loads would be a branch
  T max = -infinity<T>();
  T spoils = 0;  // a T as the rest of the loop: with an int, GCC 12 gets this reduction wrong for fp64 on AVX-512
  if (!HasLogQ && exponent_rises(W, S, p)) {
#pragma omp simd reduction(max : max) reduction(+ : spoils)
    for (int64_t j = 0; j < x.n; ++j) {
      spoils += x.scores[j] == x.scores[j] ? T(0) : T(1);
      max = x.scores[j] > max ? x.scores[j] : max;
    }
    non_finite |= spoils != T(0) || max == infinity<T>();
    return mass(max, x.pos, T(0), W, S, p).exponent;
  }
#pragma omp simd reduction(max : max) reduction(+ : spoils)
  for (int64_t j = 0; j < x.n; ++j) {
    const T exponent = mass(x.scores[j], x.pos, x.log_q_of(j), W, S, p).exponent;
    if (is_costly(S)) terms[j] = exponent;
    spoils += exponent == exponent ? T(0) : T(1);
    max = exponent > max ? exponent : max;
  }
  non_finite |= spoils != T(0);
  return max;
}

// Σ of term(j), which is also left in terms[j].
template <typename T, typename Term>
CW_INLINE T sum_of(int64_t n, T* terms, Term term) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = block_end(begin, n);
    T partial = 0;
#pragma omp simd reduction(+ : partial)
    for (int64_t j = begin; j < end; ++j) {
      const T value = term(j);
      terms[j] = value;
      partial += value;
    }
    sum += partial;
  }
  return T(sum);
}

// The sum of the elements' terms relative to e^max, times counts[j] where Counted, where no exponent is larger. The terms are
// left in `terms`, after largest_exponent().
template <typename T, Weighting W, Surrogate S, bool Counted, bool HasLogQ>
T sum_terms(const Elements<T, HasLogQ> x, const T* counts, const Parameters<T>& parameters, T max, T* terms) {
  const Parameters<T> p = parameters;
  if (max == -infinity<T>()) {
    fill(terms, x.n, T(0));
    return T(0);
  }
  if (W == Weighting::sigmoid && S == Surrogate::exp && !HasLogQ && p.logistic) {
    const T e_max = exp_(max);
    return sum_of(x.n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
      const T once = logistic_term(x.scores[j], x.pos, max, e_max, p);
      return Counted ? counts[j] * once : once;
    });
  }
  return sum_of(x.n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
    Mass<T> m = mass(x.scores[j], x.pos, x.log_q_of(j), W, S, p);
    if (is_costly(S)) m.exponent = terms[j];
    return Counted ? counts[j] * term(m, max) : term(m, max);
  });
}

// Σ factor·e^exponent, times its count where Counted, and in `terms` each element's term relative to the largest exponent.
template <typename T, Weighting W, Surrogate S, bool Counted, bool HasLogQ>
LogSum<T> sum_masses(const Elements<T, HasLogQ> x, const T* counts, const Parameters<T>& p, T* terms, bool& non_finite) {
  const T max = largest_exponent<T, W, S>(x, p, terms, non_finite);
  return {max, sum_terms<T, W, S, Counted>(x, counts, p, max, terms)};
}

// Each its own function, so that counts take nothing from rows without them.
template <typename T, Weighting W, Surrogate S, bool HasLogQ>
CW_INLINE LogSum<T> sum_negatives(const Elements<T, HasLogQ> x, const T* counts, const Parameters<T>& p, T* terms,
                                  bool& non_finite) {
  return counts ? sum_masses<T, W, S, true>(x, counts, p, terms, non_finite)
                : sum_masses<T, W, S, false>(x, nullptr, p, terms, non_finite);
}

// Σ factor·e^exponent of mass_of(j), times counts[j] if given, and in `terms` each element's term.
template <typename T, typename MassOf>
CW_INLINE LogSum<T> sum_parts(int64_t n, const T* counts, T* terms, MassOf mass_of) {
  T max = -infinity<T>();
#pragma omp simd reduction(max : max)
  for (int64_t j = 0; j < n; ++j) {
    const T exponent = mass_of(j).exponent;
    max = exponent > max ? exponent : max;
  }
  if (max == -infinity<T>()) {
    fill(terms, n, T(0));
    return {max, T(0)};
  }
  if (counts) return {max, sum_of(n, terms, [=](int64_t j) CW_INLINE_LAMBDA { return counts[j] * term(mass_of(j), max); })};
  return {max, sum_of(n, terms, [=](int64_t j) CW_INLINE_LAMBDA { return term(mass_of(j), max); })};
}

// The denominator where it is not just N: Σ q, or Σ q ω.
template <typename T, Weighting W>
LogSum<T> denominator(const Row<T>& row, const Parameters<T>& parameters, T* terms) {
  const Parameters<T> p = parameters;
  const T* const log_q = row.log_q;
  const T* const neg = row.neg;
  const T pos = row.pos;
  // Each a loop of its own: a condition within one would be a branch.
  if (!p.normalize_weights) {
    return sum_parts(row.n, row.counts, terms, [=](int64_t j) CW_INLINE_LAMBDA { return Mass<T>{log_q[j], T(1)}; });
  }
  if (!log_q) {
    return sum_parts(row.n, row.counts, terms, [=](int64_t j) CW_INLINE_LAMBDA { return weight_mass(neg[j], pos, T(0), W, p); });
  }
  return sum_parts(row.n, row.counts, terms, [=](int64_t j) CW_INLINE_LAMBDA { return weight_mass(neg[j], pos, log_q[j], W, p); });
}

// The gradient of each score: its share of the sum, times the sum's derivative, times the slope. Returns their total.
template <typename T, Weighting W, Surrogate S>
T share_out(const T* scores, int64_t n, T pos, T by_sum, T sum, const Parameters<T>& parameters, T* terms) {
  const Parameters<T> p = parameters;
  const T unit = by_sum / sum;
  if (slope_is_constant(W, S, p)) {
    const T factor = unit * p.inv_tau;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) terms[j] *= factor;
    return by_sum * p.inv_tau;
  }
  const auto shares = [=](Parameters<T> p, bool detached) CW_INLINE_LAMBDA {
    p.detach_weights = detached;  // a constant, as which it is no branch within the loop
    return sum_of(n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
      const T value = terms[j] * unit * slope(scores[j] - pos, W, S, p);
      return terms[j] == T(0) ? T(0) : value;
    });
  };
  return p.detach_weights ? shares(p, true) : shares(p, false);
}

// The elements' part of the gradient of log τ: each element's share of the sum, times the sum's derivative, times slope(j).
template <typename T, typename Slope>
CW_INLINE T temperature_sum(int64_t n, T by_sum, T sum, const T* terms, Slope slope_of) {
  const T unit = by_sum / sum;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = block_end(begin, n);
    T partial = 0;
#pragma omp simd reduction(+ : partial)
    for (int64_t j = begin; j < end; ++j) {
      const T value = terms[j] * unit * slope_of(j);
      partial += terms[j] == T(0) ? T(0) : value;
    }
    total += partial;
  }
  return T(total);
}

// The gradient of τ, once the terms stand where the gradients will.
template <typename T, Weighting W, Surrogate S>
T temperature_gradient(const Row<T>& row, const RowSums<T>& sums, const RowResult<T>& result, const Parameters<T>& parameters,
                       const RowGradients<T>& gradients, const T* denominator_terms) {
  const Parameters<T> p = parameters;
  const T* const neg = row.neg;
  const T* const extra = row.extra;
  const T pos = row.pos;
  const bool through_weights = !p.detach_weights && p.weight_follows;
  // The condition is a constant within each loop, in which it would be a branch.
  const auto sum_over = [=](const T* scores, int64_t n, T by_sum, T sum, const T* terms) CW_INLINE_LAMBDA {
    const auto with = [=](Parameters<T> p, bool through) CW_INLINE_LAMBDA {
      p.detach_weights = !through;
      p.weight_follows = through;
      return temperature_sum(n, by_sum, sum, terms, [=](int64_t j) CW_INLINE_LAMBDA {
        return temperature_slope(scores[j] - pos, W, S, p);
      });
    };
    return W == Weighting::sigmoid && through_weights ? with(p, true) : with(p, false);
  };
  T by_log_tau = sum_over(neg, row.n, result.by_log_a, sums.negatives.sum, gradients.neg);
  if (p.normalize_weights && through_weights) {
    by_log_tau -= temperature_sum(
        row.n, result.by_log_a, sums.denominator.sum, denominator_terms, [=](int64_t j) CW_INLINE_LAMBDA {
          const T slope = weight_temperature_slope(neg[j] - pos, W, p);
          return neg[j] == -infinity<T>() ? T(0) : slope;  // there the weight is at its limit
        });
  }
  if (sums.m > 0 && result.by_log_c != T(0)) {
    by_log_tau += sum_over(extra, row.m, result.by_log_c, sums.positives.sum, gradients.extra);
  }
  return result.by_temperature + by_log_tau * p.inv_tau;
}

// The log weights [n] of a row that has a curve, in `out`; `left` and `right` are scratch [n]. A loop for each step, since
// GCC vectorises none that looks up and selects.
template <typename T>
void log_weights_with_curve(const Row<T>& row, T* out, T* left, T* right) {
  const Curve<T> curve = *row.curve;
  const T* const values = row.curve_values;
  const T* const given = row.log_q;
  const T* const neg = row.neg;
  const T origin = curve.on_margin ? row.pos : T(0);
  const int64_t n = row.n;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = position_on(curve, neg[j] - origin);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) left[j] = values[place_at(curve, out[j]).k];
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) right[j] = values[place_at(curve, out[j]).k + 1];
  const auto weigh = [=](auto given_at) CW_INLINE_LAMBDA {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T fraction = place_at(curve, out[j]).fraction;
      out[j] = log_weight_between(left[j], right[j], fraction, neg[j] - origin, given_at(j));
    }
  };
  if (given) {
    weigh([=](int64_t j) CW_INLINE_LAMBDA { return given[j]; });
  } else {
    weigh([=](int64_t) CW_INLINE_LAMBDA { return T(0); });
  }
}

// The gradient of the curve's places, from that of the log weights.
template <typename T>
void curve_gradient(const Row<T>& row, const T* d_log_q, T* d_curve) {
  const Curve<T> curve = *row.curve;
  fill(d_curve, curve.last + 1, T(0));
  const T origin = curve.on_margin ? row.pos : T(0);
  for (int64_t j = 0; j < row.n; ++j) {
    if (d_log_q[j] == T(0)) continue;  // masked out
    const CurvePlace<T> place = place_at(curve, position_on(curve, row.neg[j] - origin));
    d_curve[place.k] += d_log_q[j] * (T(1) - place.fraction);
    d_curve[place.k + 1] += d_log_q[j] * place.fraction;
  }
}

// How many negatives that are not masked out score above the threshold.
template <typename T>
int64_t count_above(const Row<T>& row) {
  const T threshold = T(row.values.threshold);
  const T *const neg = row.neg, *const log_q = row.log_q, *const counts = row.counts;
  int64_t count = 0;
  if (counts) {
    for (int64_t j = 0; j < row.n; ++j) {
      const bool above = neg[j] > threshold && !(log_q && log_q[j] == -infinity<T>());
      count += above ? int64_t(counts[j]) : 0;
    }
    return count;
  }
  // A loop for each case, without a branch, so that both are vectors.
  if (log_q) {
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < row.n; ++j) count += (neg[j] > threshold) & (log_q[j] != -infinity<T>());
  } else {
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < row.n; ++j) count += neg[j] > threshold;
  }
  return count;
}

// How many negatives are masked out: elements, or counts[j] of each if given.
template <typename T>
int64_t count_masked(const T* log_q, const T* counts, int64_t n) {
  int64_t masked = 0;
  if (counts) {
    for (int64_t j = 0; j < n; ++j) masked += log_q[j] == -infinity<T>() ? int64_t(counts[j]) : 0;
  } else {
    for (int64_t j = 0; j < n; ++j) masked += log_q[j] == -infinity<T>();
  }
  return masked;
}

// The extra positives' part of the row's sums; their terms are left in `terms`.
template <typename T, Weighting W, Surrogate S>
void sum_positives(const Row<T>& row, const Parameters<T>& p, T* terms, RowSums<T>& sums) {
  for (int64_t k = 0; k < row.m; ++k) sums.m += !(row.extra[k] == -infinity<T>());
  if (sums.m == 0) return;
  const Elements<T, false> extra{row.extra, nullptr, row.m, row.pos};
  sums.positives = sum_masses<T, W, S, false>(extra, nullptr, p, terms, sums.non_finite);
}

// The gradients of the extra positives, from their terms. Returns their total.
template <typename T, Weighting W, Surrogate S>
T positives_gradient(const Row<T>& row, const Parameters<T>& p, const RowSums<T>& sums, const RowResult<T>& result, T* terms) {
  if (sums.m > 0 && result.by_log_c != T(0)) {
    return share_out<T, W, S>(row.extra, row.m, row.pos, result.by_log_c, sums.positives.sum, p, terms);
  }
  fill(terms, row.m, T(0));
  return T(0);
}

// How many values row_kernel() needs as scratch.
static inline int64_t row_scratch(int64_t n) { return 3 * n; }

// scratch: row_scratch(n).
template <typename T, Weighting W, Surrogate S>
RowResult<T> row_kernel(Row<T>& row, const Parameters<T>& p, RowGradients<T>& gradients, T* scratch) {
  T* const denominator_terms = scratch;
  if (row.curve_values) {
    log_weights_with_curve(row, scratch + row.n, scratch, scratch + 2 * row.n);
    row.log_q = scratch + row.n;
  }
  if (row.above) *row.above = count_above(row);

  RowSums<T> sums{};
  sums.pos = row.pos;
  sums.values = row.values;
  sums.n_eff = row.negatives;
  sums.has_denominator = row.log_q || p.normalize_weights;
  if (sums.has_denominator) sums.denominator = denominator<T, W>(row, p, denominator_terms);
  if (row.log_q) {
    sums.n_eff -= count_masked(row.log_q, row.counts, row.n);
    const Elements<T, true> negatives{row.neg, row.log_q, row.n, row.pos};
    sums.negatives = sum_negatives<T, W, S>(negatives, row.counts, p, gradients.neg, sums.non_finite);
  } else {
    const Elements<T, false> negatives{row.neg, nullptr, row.n, row.pos};
    sums.negatives = sum_negatives<T, W, S>(negatives, row.counts, p, gradients.neg, sums.non_finite);
  }
  sum_positives<T, W, S>(row, p, gradients.extra, sums);

  RowResult<T> result = finish_row(sums, p);
  if (!gradients.wanted) return result;

  if (!(result.loss == result.loss) || !result.live) {
    const T value = result.live ? not_a_number<T>() : T(0);
    gradients.pos = value;
    fill(gradients.neg, row.n, value);
    for (int64_t j = 0; row.counts && j < row.n; ++j) gradients.neg[j] = row.counts[j] > T(0) ? value : T(0);
    fill(gradients.extra, row.m, value);
    if (gradients.log_q) fill(gradients.log_q, row.n, value);
    if (gradients.curve) fill(gradients.curve, row.curve->last + 1, value);
    return result;
  }

  if (gradients.log_q || gradients.curve) {
    T* const d_log_q = gradients.log_q ? gradients.log_q : scratch + 2 * row.n;
    // Divided before they are subtracted: where one negative is all there is, the difference is 0.
    for (int64_t j = 0; j < row.n; ++j) {
      const T share = gradients.neg[j] / sums.negatives.sum;
      d_log_q[j] = result.by_log_a * (share - denominator_terms[j] / sums.denominator.sum);
    }
    if (gradients.curve) curve_gradient(row, d_log_q, gradients.curve);
  }
  if (row.own_temperature) {
    result.by_temperature = temperature_gradient<T, W, S>(row, sums, result, p, gradients, denominator_terms);
  }
  T total = share_out<T, W, S>(
      row.neg, row.n, row.pos, result.by_log_a, sums.negatives.sum, p, gradients.neg);
  if (p.normalize_weights && !p.detach_weights) {
    const T unit = result.by_log_a / sums.denominator.sum;
    double through_denominator = 0;  // many terms of one sign, which a running sum in fp32 would lose digits of
    for (int64_t j = 0; j < row.n; ++j) {
      if (denominator_terms[j] == T(0) || row.neg[j] == -infinity<T>()) continue;
      const T value = denominator_terms[j] * unit * weight_slope(row.neg[j] - row.pos, W, p);
      gradients.neg[j] -= value;
      through_denominator += value;
    }
    total -= T(through_denominator);
  }
  total += positives_gradient<T, W, S>(row, p, sums, result, gradients.extra);
  gradients.pos = result.by_pos - total;
  return result;
}

template <typename T>
using RowKernel = RowResult<T> (*)(Row<T>&, const Parameters<T>&, RowGradients<T>&, T*);

template <typename T, Weighting W>
RowKernel<T> with_surrogate(Surrogate surrogate) {
  switch (surrogate) {
#define CW_CASE(name)      \
  case Surrogate::name:    \
    return row_kernel<T, W, Surrogate::name>;
    CW_SURROGATES(CW_CASE)
#undef CW_CASE
  }
  return nullptr;
}

template <typename T>
RowKernel<T> choose_row_kernel(const Parameters<T>& p) {
  switch (p.weighting) {
#define CW_CASE(name)      \
  case Weighting::name:    \
    return with_surrogate<T, Weighting::name>(p.surrogate);
    CW_WEIGHTINGS(CW_CASE)
#undef CW_CASE
  }
  return nullptr;
}

}  // namespace CW_ISA
}  // namespace cw_cpu
