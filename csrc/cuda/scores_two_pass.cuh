// One row by one team of threads: the walk that cw_row.h describes, for scores and embeddings.
//
// The statistics take one pass over the scores, with a running maximum; the gradients a second one, which reads them
// again from the caches.
#pragma once

#include "../cw_row.h"
#include "warp.cuh"

namespace cw_cuda {

using namespace CW_NAMESPACE;

// The parameters of row b of a task, from those of all rows.
template <typename Task, typename T>
__device__ __forceinline__ Parameters<T> row_parameters(const Task& task, const Parameters<T>& all, int64_t b) {
  Parameters<T> own = all;
  if (task.values.temperature.rows) set_temperature(own, task.arguments, task.values.temperature.at(b));
  return own;
}

// ---- sums relative to a running maximum -----------------------------------------------------------------------------

template <typename T>
CW_INLINE LogSum<T> no_mass() {
  return {-infinity<T>(), T(0)};
}

// A NaN among the elements may get lost; the caller checks for it.
template <typename T, int V>
CW_INLINE void add(LogSum<T>& s, const Mass<T> (&elements)[V]) {
  T max = s.max;
#pragma unroll
  for (int i = 0; i < V; ++i) max = elements[i].exponent > max ? elements[i].exponent : max;
  if (max == -infinity<T>()) return;  // −∞ − −∞ is NaN
  if (max > s.max) {
    s.sum *= exp_nonpositive(s.max - max);
    s.max = max;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) s.sum += term(elements[i], max);
}

template <typename T>
CW_INLINE LogSum<T> merged(const LogSum<T>& a, const LogSum<T>& b) {
  const T max = a.max > b.max ? a.max : b.max;
  if (max == -infinity<T>()) return no_mass<T>();
  return {max, a.sum * exp_nonpositive(a.max - max) + b.sum * exp_nonpositive(b.max - max)};
}

// ---- the statistics of a row ----------------------------------------------------------------------------------------

template <typename T>
struct RowStatistics {
  LogSum<T> negatives;
  LogSum<T> denominator;
  LogSum<T> positives;
  int64_t masked;  // negatives that are masked out
  int64_t m;       // extra positives that are not padding
  int64_t above;   // negatives above the row's threshold that are not masked out
  int non_finite;
};

template <typename T>
CW_INLINE RowStatistics<T> no_statistics() {
  return {no_mass<T>(), no_mass<T>(), no_mass<T>(), 0, 0, 0, 0};
}

template <typename T>
CW_INLINE RowStatistics<T> merged(const RowStatistics<T>& a, const RowStatistics<T>& b) {
  RowStatistics<T> s;
  s.negatives = merged(a.negatives, b.negatives);
  s.denominator = merged(a.denominator, b.denominator);
  s.positives = merged(a.positives, b.positives);
  s.masked = a.masked + b.masked;
  s.m = a.m + b.m;
  s.above = a.above + b.above;
  s.non_finite = a.non_finite | b.non_finite;
  return s;
}

template <typename T>
__device__ __forceinline__ LogSum<T> from_lane(const LogSum<T>& s, int offset) {
  return {__shfl_down_sync(kAllLanes, s.max, offset), __shfl_down_sync(kAllLanes, s.sum, offset)};
}

// The first lane's value is the warp's.
template <typename T>
__device__ __forceinline__ RowStatistics<T> merged_over_warp(RowStatistics<T> s) {
#pragma unroll 1
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    RowStatistics<T> other;
    other.negatives = from_lane(s.negatives, offset);
    other.denominator = from_lane(s.denominator, offset);
    other.positives = from_lane(s.positives, offset);
    other.masked = __shfl_down_sync(kAllLanes, s.masked, offset);
    other.m = __shfl_down_sync(kAllLanes, s.m, offset);
    other.above = __shfl_down_sync(kAllLanes, s.above, offset);
    other.non_finite = __shfl_down_sync(kAllLanes, s.non_finite, offset);
    s = merged(s, other);
  }
  return s;
}

// An extra positive's part in the statistics.
template <typename T>
CW_INLINE void add_positive(RowStatistics<T>& s, T score, T pos, const Parameters<T>& p) {
  const Mass<T> element[1] = {mass(score, pos, T(0), p.weighting, p.surrogate, p)};
  s.m += score != -infinity<T>();
  s.non_finite |= element[0].exponent != element[0].exponent;
  add(s.positives, element);
}

// A negative's part in the denominator.
template <typename T>
CW_INLINE Mass<T> denominator_mass(T score, T pos, T log_q, const Parameters<T>& p) {
  return p.normalize_weights ? weight_mass(score, pos, log_q, p.weighting, p) : Mass<T>{log_q, T(1)};
}

// ---- what the second pass needs -------------------------------------------------------------------------------------

template <typename T>
struct RowPlan {
  RowResult<T> result;
  bool regular;         // else every gradient is `filler`
  T filler;             // NaN in a non_finite row, 0 in a dead one
  T negatives_max;      // a term times the unit is the derivative to the log of its mass
  T negatives_unit;
  T denominator_max;
  T denominator_unit;
  T positives_max;
  T positives_unit;
};

template <typename T>
CW_INLINE RowPlan<T> plan_row(const RowStatistics<T>& s, T pos, int64_t n, bool has_denominator,
                              const RowArguments& values, const Parameters<T>& p) {
  RowSums<T> sums;
  sums.pos = pos;
  sums.n_eff = n - s.masked;
  sums.non_finite = s.non_finite != 0;
  sums.negatives = s.negatives;
  sums.has_denominator = has_denominator;
  sums.denominator = s.denominator;
  sums.m = s.m;
  sums.positives = s.positives;
  sums.values = values;

  RowPlan<T> plan;
  plan.result = finish_row(sums, p);
  const bool is_nan = !(plan.result.loss == plan.result.loss);
  plan.regular = plan.result.live && !is_nan;
  plan.filler = plan.result.live ? not_a_number<T>() : T(0);
  plan.negatives_max = s.negatives.max;
  plan.negatives_unit = plan.result.by_log_a / s.negatives.sum;
  plan.denominator_max = s.denominator.max;
  plan.denominator_unit = plan.result.by_log_a / s.denominator.sum;
  const bool correction = s.m > 0 && plan.result.by_log_c != T(0);
  plan.positives_max = s.positives.max;
  plan.positives_unit = correction ? plan.result.by_log_c / s.positives.sum : T(0);
  return plan;
}

// A score's gradient from its term. Where there is no mass, the slope may be NaN or ∞; where the sum has none, the term
// is NaN and the unit 0.
template <typename T>
CW_INLINE T score_gradient(T term, T unit, T d, const Parameters<T>& p) {
  const T value = term * unit * slope(d, p.weighting, p.surrogate, p);
  return term == T(0) || unit == T(0) ? T(0) : value;
}

template <typename T>
CW_INLINE T positive_gradient(T score, T pos, const RowPlan<T>& plan, const Parameters<T>& p) {
  const T own = term(mass(score, pos, T(0), p.weighting, p.surrogate, p), plan.positives_max);
  const T value = score_gradient(own, plan.positives_unit, score - pos, p);
  return plan.regular ? value : plan.filler;
}

// Whether a negative's gradient flows through the denominator too.
template <typename T>
CW_INLINE bool flows_through_denominator(const Parameters<T>& p) {
  return p.normalize_weights && !p.detach_weights;
}

// The gradient of a negative's score, and in `d_log_q` that of its log weight if it is wanted.
template <typename T>
CW_INLINE T negative_gradient(T score, T pos, T log_q, bool wants_log_q, const RowPlan<T>& plan, const Parameters<T>& p,
                              T& d_log_q) {
  const T d = score - pos;
  const T own = term(mass(score, pos, log_q, p.weighting, p.surrogate, p), plan.negatives_max);
  T value = score_gradient(own, plan.negatives_unit, d, p);
  d_log_q = T(0);
  if (wants_log_q || flows_through_denominator(p)) {
    const T q = term(denominator_mass(score, pos, log_q, p), plan.denominator_max);
    d_log_q = own * plan.negatives_unit - q * plan.denominator_unit;
    const bool flows = flows_through_denominator(p) && q != T(0) && score != -infinity<T>();
    value -= flows ? q * plan.denominator_unit * weight_slope(d, p.weighting, p) : T(0);
  }
  d_log_q = plan.regular ? d_log_q : plan.filler;
  return plan.regular ? value : plan.filler;
}

// An element's part in the gradient of log τ, from its term.
template <typename T>
CW_INLINE T temperature_part(T term, T unit, T d, const Parameters<T>& p) {
  const T value = term * unit * temperature_slope(d, p.weighting, p.surrogate, p);
  return term == T(0) || unit == T(0) ? T(0) : value;
}

template <typename T>
CW_INLINE T positive_temperature_part(T score, T pos, const RowPlan<T>& plan, const Parameters<T>& p) {
  const T own = term(mass(score, pos, T(0), p.weighting, p.surrogate, p), plan.positives_max);
  return temperature_part(own, plan.positives_unit, score - pos, p);
}

template <typename T>
CW_INLINE T negative_temperature_part(T score, T pos, T log_q, const RowPlan<T>& plan, const Parameters<T>& p) {
  const T d = score - pos;
  const T own = term(mass(score, pos, log_q, p.weighting, p.surrogate, p), plan.negatives_max);
  T value = temperature_part(own, plan.negatives_unit, d, p);
  if (flows_through_denominator(p) && p.weight_follows) {
    const T q = term(denominator_mass(score, pos, log_q, p), plan.denominator_max);
    const bool flows = q != T(0) && score != -infinity<T>();  // there the weight is at its limit
    value -= flows ? q * plan.denominator_unit * weight_temperature_slope(d, p.weighting, p) : T(0);
  }
  return value;
}

// ---- the walk -------------------------------------------------------------------------------------------------------

// Calls body(constant, j) with every j in [0, n) in parts of constant elements: kVec, or 1 where that does not go.
template <int kVec, int kThreads, typename Body>
__device__ __forceinline__ void for_each(int64_t n, int rank, bool aligned, Body&& body) {
  int64_t begin = 0;
  if constexpr (kVec > 1) {
    if (aligned) {
      begin = n / kVec * kVec;
#pragma unroll 1
      for (int64_t j = int64_t(rank) * kVec; j < begin; j += kThreads * kVec) {
        body(std::integral_constant<int, kVec>{}, j);
      }
    }
  }
#pragma unroll 1
  for (int64_t j = begin + rank; j < n; j += kThreads) body(std::integral_constant<int, 1>{}, j);
}

// A team's shared memory.
template <typename T, int kWarps>
struct TeamScratch {
  RowStatistics<T> statistics[kWarps];
  RowPlan<T> plan;
  T sums[kWarps];
};

// A Row gives and takes scores:
//   kVec                              how many negatives it can give and take at a time
//   inputs_aligned, outputs_aligned   and whether it can at all
//   n, m, pos, values
//   has_log_q                         log weights that are given, or come from a curve
//   curve                             which has no log weights where there is none
//   excluded                          how many of the n, with a score of −∞, are not negatives
//   load<V>(j, score, log_q)          negatives [j, j + V); log_q is −∞ for a masked one
//   extra(k)                          an extra positive
//   set_pos(d), set<V>(j, d), set_extra(k, d), set_log_q<V>(j, d)
//   wants_log_q, wants_temperature    whose gradients

// A thread's part of the row's statistics.
template <int kThreads, typename T, typename Row>
__device__ __forceinline__ RowStatistics<T> own_statistics(const Row& row, const Parameters<T>& p, int rank) {
  const T pos = row.pos;
  const T threshold = T(row.values.threshold);
  const bool has_denominator = row.has_log_q || p.normalize_weights;
  RowStatistics<T> own = no_statistics<T>();
  for_each<Row::kVec, kThreads>(row.n, rank, row.inputs_aligned, [&](auto size, int64_t j) {
    constexpr int V = decltype(size)::value;
    T score[V], log_q[V];
    row.template load<V>(j, score, log_q);
    Mass<T> elements[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      elements[i] = mass(score[i], pos, log_q[i], p.weighting, p.surrogate, p);
      own.masked += log_q[i] == -infinity<T>();
      own.above += score[i] > threshold && log_q[i] != -infinity<T>();
      own.non_finite |= elements[i].exponent != elements[i].exponent;
    }
    add(own.negatives, elements);
    if (has_denominator) {
#pragma unroll
      for (int i = 0; i < V; ++i) elements[i] = denominator_mass(score[i], pos, log_q[i], p);
      add(own.denominator, elements);
    }
  });
#pragma unroll 1
  for (int64_t k = rank; k < row.m; k += kThreads) add_positive(own, row.extra(k), pos, p);
  return own;
}

// The threads' parts put together, over each warp and then over the warps. The first thread computes the plan, which
// is in scratch.plan after the team's next barrier.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void conclude(RowStatistics<T> own, const Row& row, int64_t b, const Parameters<T>& p,
                                         const RowResults<T>& out, TeamScratch<T, kWarps>& scratch) {
  const int rank = Team<kWarps>::rank();
  own = merged_over_warp(own);
  if constexpr (kWarps > 1) {
    if (rank % kWarp == 0) scratch.statistics[rank / kWarp] = own;
    __syncthreads();
    if (rank < kWarp) {
      own = no_statistics<T>();
      if (rank < kWarps) own = scratch.statistics[rank];
      own = merged_over_warp(own);
    }
  }
  if (rank == 0) {
    const bool has_denominator = row.has_log_q || p.normalize_weights;
    own.masked += row.excluded;
    scratch.plan = plan_row(own, row.pos, row.n, has_denominator, row.values, p);
    write_row(out, b, scratch.plan.result);
    if (out.above) out.above[b] = own.above;
  }
}

// The gradient of a regular row's own temperature. It takes one more pass over the scores, which rows without it save.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void give_temperature(const Row& row, int64_t b, const Parameters<T>& p,
                                                 const RowResults<T>& out, TeamScratch<T, kWarps>& scratch) {
  const RowPlan<T> plan = scratch.plan;
  constexpr int kThreads = Team<kWarps>::kThreads;
  const int rank = Team<kWarps>::rank();
  T total = T(0);
  for_each<Row::kVec, kThreads>(row.n, rank, row.inputs_aligned, [&](auto size, int64_t j) {
    constexpr int V = decltype(size)::value;
    T score[V], log_q[V];
    row.template load<V>(j, score, log_q);
#pragma unroll
    for (int i = 0; i < V; ++i) total += negative_temperature_part(score[i], row.pos, log_q[i], plan, p);
  });
#pragma unroll 1
  for (int64_t k = rank; k < row.m; k += kThreads) total += positive_temperature_part(row.extra(k), row.pos, plan, p);
  total = Team<kWarps>::sum(total, scratch.sums);
  if (rank == 0) write_temperature(out, b, plan.result.by_temperature + total * p.inv_tau);
}

// Adds the `value`s of a warp's lanes to to[place] where `own` is set, in an order that does not depend on timing.
template <typename T>
__device__ __forceinline__ void add_in_order(bool own, int place, T value, T* to) {
  unsigned left = __ballot_sync(kAllLanes, own);
  while (left != 0) {
    const int next = __shfl_sync(kAllLanes, place, __ffs(int(left)) - 1);
    const bool here = own && place == next;
    const T sum = Team<1>::sum(here ? value : T(0), static_cast<T*>(nullptr));
    if (int(threadIdx.x) % kWarp == 0) to[next] += sum;  // always the same thread, which sees what it added before
    left &= ~__ballot_sync(kAllLanes, here);
  }
}

// The gradient of the curve's log weights [K] by the row. Atomic additions would come in another order each time, so
// every warp takes places of its own, and reads all negatives. Ends with the team's barrier.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void give_curve(const Row& row, const Parameters<T>& p, T* d_curve,
                                           const TeamScratch<T, kWarps>& scratch) {
  const RowPlan<T> plan = scratch.plan;
  const int rank = Team<kWarps>::rank(), lane = rank % kWarp, warp = rank / kWarp;
  const Curve<T>& curve = row.curve;
#pragma unroll 1
  for (int k = rank; k <= curve.last; k += Team<kWarps>::kThreads) d_curve[k] = plan.regular ? T(0) : plan.filler;
  Team<kWarps>::sync();
  if (!plan.regular) return;
#pragma unroll 1
  for (int64_t first = 0; first < row.n; first += kWarp) {
    const bool inside = first + lane < row.n;
    T score[1], log_q[1], d_log_q;
    row.template load<1>(inside ? first + lane : row.n - 1, score, log_q);
    negative_gradient(score[0], row.pos, log_q[0], true, plan, p, d_log_q);
    const CurvePlace<T> place = place_at(curve, position_on(curve, curve.on_margin ? score[0] - row.pos : score[0]));
    const T right = d_log_q * place.fraction, left = d_log_q * (T(1) - place.fraction);
    const bool adds = inside && d_log_q != T(0);
    add_in_order(adds && place.k % kWarps == warp, place.k, left, d_curve);
    add_in_order(adds && (place.k + 1) % kWarps == warp, place.k + 1, right, d_curve);
  }
  Team<kWarps>::sync();
}

// The gradients of all scores of the row.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void give_gradients(const Row& row, const Parameters<T>& p,
                                               TeamScratch<T, kWarps>& scratch) {
  const RowPlan<T> plan = scratch.plan;
  constexpr int kThreads = Team<kWarps>::kThreads;
  const int rank = Team<kWarps>::rank();
  T total = T(0);
  for_each<Row::kVec, kThreads>(row.n, rank, row.inputs_aligned && row.outputs_aligned, [&](auto size, int64_t j) {
    constexpr int V = decltype(size)::value;
    T score[V], log_q[V], d_score[V], d_log_q[V];
    row.template load<V>(j, score, log_q);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      d_score[i] = negative_gradient(score[i], row.pos, log_q[i], row.wants_log_q, plan, p, d_log_q[i]);
      total += d_score[i];
    }
    row.template set<V>(j, d_score);
    if (row.wants_log_q) row.template set_log_q<V>(j, d_log_q);
  });
#pragma unroll 1
  for (int64_t k = rank; k < row.m; k += kThreads) {
    const T d = positive_gradient(row.extra(k), row.pos, plan, p);
    row.set_extra(k, d);
    total += d;
  }
  total = Team<kWarps>::sum(total, scratch.sums);
  if (rank == 0) row.set_pos(plan.regular ? plan.result.by_pos - total : plan.filler);
}

// All gradients of the row, once scratch.plan is complete. Those of the scores come last: from embeddings they take the
// scores' place.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void give_all_gradients(const Row& row, int64_t b, const Parameters<T>& p,
                                                   const RowResults<T>& out, TeamScratch<T, kWarps>& scratch) {
  if (row.wants_temperature && scratch.plan.regular) give_temperature(row, b, p, out, scratch);
  if (out.d_curve) give_curve(row, p, out.d_curve + b * (row.curve.last + 1), scratch);
  give_gradients(row, p, scratch);
}

// The whole row. All threads of the team must call; `scratch` is the team's, and no thread may still be reading it.
template <int kWarps, typename T, typename Row>
__device__ __forceinline__ void walk_row(const Row& row, int64_t b, const Parameters<T>& p, bool with_gradients,
                                         const RowResults<T>& out, TeamScratch<T, kWarps>& scratch) {
  constexpr int kThreads = Team<kWarps>::kThreads;
  conclude(own_statistics<kThreads>(row, p, Team<kWarps>::rank()), row, b, p, out, scratch);
  Team<kWarps>::sync();
  if (with_gradients) give_all_gradients(row, b, p, out, scratch);
}

}  // namespace cw_cuda
