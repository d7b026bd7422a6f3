// The mathematics of one row: the only place of the formula in C++. Plain scalars, host and device.
//
// A row is the positive s⁺, N negatives s_j with log weights log q_j, and M extra positives s_k. With d = s − s⁺:
//     A = Σ_j q_j ω(d_j) e^φ(d_j) / Σ_j q_j      C = (1/M) Σ_k ω(d_k) e^φ(d_k)      G = max(A − πC, floor) / (1 − π)
//     L = log(N_eff·G)  or  log(1 + N_eff·G), plus s⁺(1/τ − 1/τ⁺) with a temperature of the positive's own
//     row loss = c(s⁺)·L
// where e^φ is exp(d/τ) or one of PSL's surrogates. docs/how-it-works/formula.md states it in full; cw_ext/reference.py is its
// twin.
//
// How a caller walks a row:
//   1. for every element, `mass()`: its part of the sum as factor·e^exponent, so that nothing overflows;
//   2. sum = Σ factor·e^(exponent − max), with max the largest exponent;
//   3. `finish_row()`: loss, and its derivatives to log A and log C;
//   4. for every element, `slope()` times its share of the sum times that derivative: the gradient of its score.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernel_types.h"

namespace CW_NAMESPACE {

#define CW_NAME(name) name,
enum class Weighting : int { CW_WEIGHTINGS(CW_NAME) };
enum class Surrogate : int { CW_SURROGATES(CW_NAME) };
#undef CW_NAME

// The arguments of the loss, as the elements need them.
template <typename T>
struct Parameters {
  Weighting weighting;
  Surrogate surrogate;
  T inv_tau;         // 1/τ
  T inv_rho;         // 1/ρ
  T decayed_slope;   // 1/τ − 1/ρ, rounded once: the exponent's slope where ω falls like exp(−d/ρ)
  bool logistic;     // ρ = τ, sigmoid weights, exp: ω(d)·e^(d/τ) is σ(d/τ)
  bool weight_follows;  // ρ is τ, also where rows have their own
  bool detach_weights;
  bool normalize_weights;
  T floor;           // ε
  T log_floor;
  bool has_min_margin;
  T scaled_min_margin;  // m/τ
  bool has_confidence;
  T inv_tau_c;       // 1/τ_c
  bool has_positive_temperature;
  T positive_slope;  // 1/τ − 1/τ⁺, of s⁺; rounded once
  bool include_positive;
  T log_weight_at_0;  // log ω(0)
  T gradient_scale;
};

// Sets what depends on τ, which a row may have for itself.
template <typename T>
CW_INLINE void set_temperature(Parameters<T>& p, const cw_ext::LossArguments& a, double tau) {
  const double inv_tau = 1 / tau;
  const double inv_rho = p.weight_follows ? inv_tau : (a.weight_temperature.given ? 1 / a.weight_temperature.value : 1);
  p.inv_tau = T(inv_tau);
  p.inv_rho = T(inv_rho);
  p.decayed_slope = T(inv_tau - inv_rho);
  p.logistic = p.weighting == Weighting::sigmoid && p.surrogate == Surrogate::exp && inv_tau == inv_rho;
  p.scaled_min_margin = a.min_margin.given ? T(a.min_margin.value / tau) : T(0);
  p.positive_slope = p.has_positive_temperature ? T(inv_tau - 1 / a.positive_temperature.value) : T(0);
}

// `temperature`: of all rows; where each has its own, set_temperature() comes after.
template <typename T>
CW_INLINE Parameters<T> make_parameters(const cw_ext::LossArguments& a, double temperature) {
  Parameters<T> p;
  p.weighting = Weighting(a.weighting);
  p.surrogate = Surrogate(a.surrogate);
  p.weight_follows = !a.weight_temperature.given && p.weighting == Weighting::sigmoid;
  p.detach_weights = a.detach_weights;
  p.normalize_weights = a.normalize_weights;
  p.floor = T(a.floor);
  p.log_floor = T(std::log(a.floor));
  p.has_min_margin = a.min_margin.given;
  p.has_confidence = a.confidence_temperature.given;
  p.inv_tau_c = a.confidence_temperature.given ? T(1 / a.confidence_temperature.value) : T(0);
  p.has_positive_temperature = a.positive_temperature.given;
  p.include_positive = a.include_positive;
  p.log_weight_at_0 = p.weighting == Weighting::sigmoid ? T(std::log(0.5)) : T(0);
  p.gradient_scale = T(a.gradient_scale);
  set_temperature(p, a, temperature);
  return p;
}

// ---- scalar functions -----------------------------------------------------------------------------------------------

template <typename T>
CW_INLINE T infinity() {
  return std::numeric_limits<T>::infinity();
}

template <typename T>
CW_INLINE T not_a_number() {
  return std::numeric_limits<T>::quiet_NaN();
}

#if defined(__CUDA_ARCH__)
CW_INLINE float exp_(float x) { return expf(x); }
CW_INLINE double exp_(double x) { return exp(x); }
// One instruction and the scaling of its argument, whose rounding weighs |x|·e^x·2^-24, at most 2^-25. A result below the
// normal numbers is 0; NaN stays NaN.
CW_INLINE float exp_nonpositive(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504088896341f));
  return y;
}
CW_INLINE double exp_nonpositive(double x) { return exp(x); }
CW_INLINE float quotient(float x, float y) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
  return x * inverse;
}
CW_INLINE double quotient(double x, double y) { return x / y; }
CW_INLINE float abs_(float x) { return fabsf(x); }
CW_INLINE double abs_(double x) { return fabs(x); }
CW_INLINE float log_(float x) { return logf(x); }
CW_INLINE double log_(double x) { return log(x); }
CW_INLINE float log1p_(float x) { return log1pf(x); }
CW_INLINE double log1p_(double x) { return log1p(x); }
CW_INLINE float atan_(float x) { return atanf(x); }
CW_INLINE double atan_(double x) { return atan(x); }
#else
// e^x for x ≤ 0, branch-free, so that loops over it vectorise: 2^n·e^r with |r| ≤ ln2/2 and a polynomial of degree 6 for
// e^r, within 2 ulp. Below −86.9 it gives 0; NaN stays NaN.
CW_INLINE float exp_nonpositive(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, kept in the low bits
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const uint32_t scale_bits = (bits - 0x4B400000u + 127u) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return x < -86.9f ? 0.0f : poly * scale;
}
CW_INLINE double exp_nonpositive(double x) { return std::exp(x); }
// x/y for a moderate y, as 1 + e^z with z ≤ 0 is.
template <typename T>
CW_INLINE T quotient(T x, T y) {
  return x / y;
}
// e^x for any x, for the few values of a row: ∞ above 88.7.
CW_INLINE float exp_(float x) { return x > 0.0f ? std::exp(x) : exp_nonpositive(x); }
CW_INLINE double exp_(double x) { return std::exp(x); }
// log x for x that is 0, NaN or a normal number, branch-free: x = 2^n·m with m in [√½, √2), and a polynomial of degree 9 in
// m − 1 (those of log, and of atan below, are from Moshier's Cephes). Within 2 ulp.
CW_INLINE float log_(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t shifted = bits - 0x3F3504F3u;  // the bits of √½
  const float n = float(int32_t(shifted) >> 23);
  const uint32_t mantissa = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  float m;
  std::memcpy(&m, &mantissa, sizeof(m));
  const float r = m - 1.0f, z = r * r;
  float poly = 7.0376836292e-2f;
  poly = poly * r - 1.1514610310e-1f;
  poly = poly * r + 1.1676998740e-1f;
  poly = poly * r - 1.2420140846e-1f;
  poly = poly * r + 1.4249322787e-1f;
  poly = poly * r - 1.6668057665e-1f;
  poly = poly * r + 2.0000714765e-1f;
  poly = poly * r - 2.4999993993e-1f;
  poly = poly * r + 3.3333331174e-1f;
  const float value = (poly * r * z + n * -2.12194440e-4f - 0.5f * z) + r + n * 0.693359375f;
  const float low = x == 0.0f ? -std::numeric_limits<float>::infinity() : value;
  return x == x ? low : x;
}
CW_INLINE double log_(double x) { return std::log(x); }
// log(1 + x) for x in [0, 1]: what the sum rounds away is put back.
CW_INLINE float log1p_(float x) {
  const float sum = 1.0f + x;
  return log_(sum) + (x - (sum - 1.0f)) / sum;
}
CW_INLINE double log1p_(double x) { return std::log1p(x); }
// atan x, branch-free: |x| brought below tan(π/8), where a polynomial of degree 9 does. Within 2 ulp.
CW_INLINE float atan_(float x) {
  const float size = x < 0.0f ? -x : x;
  const bool large = size > 2.414213562373095f, middle = size > 0.4142135623730950f;
  const float offset = large ? 1.570796326794897f : (middle ? 0.7853981633974483f : 0.0f);
  const float above = large ? -1.0f : (middle ? size - 1.0f : size);
  const float below = large ? size : (middle ? size + 1.0f : 1.0f);
  const float r = above / below, z = r * r;
  float poly = 8.05374449538e-2f;
  poly = poly * z - 1.38776856032e-1f;
  poly = poly * z + 1.99777106478e-1f;
  poly = poly * z - 3.33329491539e-1f;
  const float value = offset + (poly * z * r + r);
  return x < 0.0f ? -value : value;
}
CW_INLINE double atan_(double x) { return std::atan(x); }
template <typename T>
CW_INLINE T abs_(T x) {
  return x < T(0) ? -x : x;
}
#endif

template <typename T>
CW_INLINE T sigmoid(T x) {
  const T e = exp_nonpositive(-abs_(x));
  return quotient(x < T(0) ? e : T(1), T(1) + e);
}

// log(1 − x); x is mostly 0.
template <typename T>
CW_INLINE T log_rest(T x) {
  return x == T(0) ? T(0) : std::log1p(-x);
}

// log(1 − π)
template <typename T>
CW_INLINE T log_of_rest(double prior) {
  const T rest = T(1 - prior);
  return rest < T(0.5) ? std::log(rest) : log_rest(T(prior));
}

// log(1 + e^x)
template <typename T>
CW_INLINE T softplus(T x) {
  return (x > T(0) ? x : T(0)) + log1p_(exp_nonpositive(-abs_(x)));
}

template <typename T>
CW_INLINE bool is_finite(T x) {
  return x - x == T(0);
}

// ---- one element ----------------------------------------------------------------------------------------------------

// factor·e^exponent. The exponent carries all that grows exponentially, the factor stays moderate.
template <typename T>
struct Mass {
  T exponent;
  T factor;
};

// ω(d).
template <typename T>
CW_INLINE Mass<T> weight(T d, Weighting weighting, const Parameters<T>& p) {
  const T y = d * p.inv_rho;
  switch (weighting) {
    case Weighting::sigmoid:
      return {y > T(0) ? -y : T(0), quotient(T(1), T(1) + exp_nonpositive(-abs_(y)))};
    case Weighting::exponential:
      return {-y, T(1)};
    case Weighting::linear:
      return {T(0), y < T(1) ? T(1) - y : (y >= T(1) ? T(0) : y)};
    default:
      return {T(0), T(1)};
  }
}

// φ(d), the log of what stands for exp(d/τ).
template <typename T>
CW_INLINE T log_surrogate(T d, Surrogate surrogate, const Parameters<T>& p) {
  switch (surrogate) {
    case Surrogate::tanh:  // tanh d + 1 = 2σ(2d)
      return (T(0.693147180559945309) - softplus(T(-2) * d)) * p.inv_tau;
    case Surrogate::atan:
      return log_(atan_(d) > T(-1) ? atan_(d) + T(1) : (d == d ? T(0) : d)) * p.inv_tau;
    case Surrogate::relu:
      return log_(d > T(-1) ? d + T(1) : (d == d ? T(0) : d)) * p.inv_tau;
    default:
      return d * p.inv_tau;
  }
}

// q·ω(d)·e^φ(d). An element without mass has the exponent −∞; one that makes its row NaN has NaN.
template <typename T>
CW_INLINE Mass<T> mass(T score, T pos, T log_q, Weighting weighting, Surrogate surrogate, const Parameters<T>& p) {
  const T d = score - pos;
  Mass<T> m = weight(d, weighting, p);
  if (surrogate == Surrogate::exp && weighting == Weighting::sigmoid) {
    m.exponent = d * (d * p.inv_rho > T(0) ? p.decayed_slope : p.inv_tau);
  } else if (surrogate == Surrogate::exp && weighting == Weighting::exponential) {
    m.exponent = d * p.decayed_slope;
  } else {
    m.exponent += log_surrogate(d, surrogate, p);
  }
  m.exponent += log_q;
  const bool absent = score == -infinity<T>() || log_q == -infinity<T>() ||
                      (weighting == Weighting::linear && m.factor == T(0));
  const bool spoils = !(score < infinity<T>()) && log_q != -infinity<T>();
  m.exponent = absent ? -infinity<T>() : m.exponent;
  m.factor = absent ? T(0) : m.factor;  // it may be infinite at a score of −∞
  m.exponent = spoils ? not_a_number<T>() : m.exponent;
  return m;
}

// Whether, without external weights, a higher score never has a lower exponent: then the highest score has the largest.
template <typename T>
CW_INLINE bool exponent_rises(Weighting weighting, Surrogate surrogate, const Parameters<T>& p) {
  if (surrogate != Surrogate::exp || weighting == Weighting::linear) return false;
  return weighting == Weighting::none || p.decayed_slope >= T(0);
}

// An element's share of the row's sum, relative to e^max, the row's largest exponent.
template <typename T>
CW_INLINE T term(const Mass<T>& m, T max) {
  return m.factor * exp_nonpositive(m.exponent - max);
}

// The same from the score, where p.logistic holds and q = 1: one exponential instead of two. `max` is the row's
// largest exponent, e_max = e^max; both are at most 0 and 1.
template <typename T>
CW_INLINE T logistic_term(T score, T pos, T max, T e_max, const Parameters<T>& p) {
  const T d = score - pos;
  const T e = exp_nonpositive(-abs_(d) * p.inv_tau - max);
  return quotient(d > T(0) ? T(1) : e, T(1) + e * e_max);
}

// q·ω(d), for the denominator under normalize_weights. At a score of −∞ the weight is its limit, or nothing where that
// limit is infinite.
template <typename T>
CW_INLINE Mass<T> weight_mass(T score, T pos, T log_q, Weighting weighting, const Parameters<T>& p) {
  Mass<T> m = weight(score - pos, weighting, p);
  m.exponent += log_q;
  const bool bounded = weighting == Weighting::none || weighting == Weighting::sigmoid;
  const bool at_limit = score == -infinity<T>();
  m.exponent = at_limit ? (bounded ? log_q : -infinity<T>()) : m.exponent;
  m.factor = at_limit ? T(1) : m.factor;
  const bool none = log_q == -infinity<T>() || (weighting == Weighting::linear && m.factor == T(0));
  m.exponent = none ? -infinity<T>() : m.exponent;
  m.factor = none ? T(0) : m.factor;
  return m;
}

// d log ω / dd, for an element with mass.
template <typename T>
CW_INLINE T weight_slope(T d, Weighting weighting, const Parameters<T>& p) {
  switch (weighting) {
    case Weighting::sigmoid:
      return -p.inv_rho * sigmoid(d * p.inv_rho);
    case Weighting::exponential:
      return -p.inv_rho;
    case Weighting::linear:
      return -p.inv_rho / (T(1) - d * p.inv_rho);
    default:
      return T(0);
  }
}

// dφ/dd, for an element with mass.
template <typename T>
CW_INLINE T surrogate_slope(T d, Surrogate surrogate, const Parameters<T>& p) {
  switch (surrogate) {
    case Surrogate::tanh:
      return T(2) * p.inv_tau * sigmoid(T(-2) * d);
    case Surrogate::atan:
      return p.inv_tau / ((T(1) + d * d) * (T(1) + atan_(d)));
    case Surrogate::relu:
      return p.inv_tau / (T(1) + d);
    default:
      return p.inv_tau;
  }
}

// d log(ω e^φ) / dd as the gradient sees it: a detached weight is a constant.
template <typename T>
CW_INLINE T slope(T d, Weighting weighting, Surrogate surrogate, const Parameters<T>& p) {
  const T own = surrogate_slope(d, surrogate, p);
  return p.detach_weights ? own : own + weight_slope(d, weighting, p);
}

// d log ω / d log τ where ρ is τ.
template <typename T>
CW_INLINE T weight_temperature_slope(T d, Weighting weighting, const Parameters<T>& p) {
  return p.weight_follows ? -d * weight_slope(d, weighting, p) : T(0);
}

// d log(ω e^φ) / d log τ as the gradient sees it, for an element with mass.
template <typename T>
CW_INLINE T temperature_slope(T d, Weighting weighting, Surrogate surrogate, const Parameters<T>& p) {
  const T own = -log_surrogate(d, surrogate, p);
  return p.detach_weights ? own : own + weight_temperature_slope(d, weighting, p);
}

// Whether slope() is 1/τ for all elements: then the gradient of a score is its term times one number of its row.
template <typename T>
CW_INLINE bool slope_is_constant(Weighting weighting, Surrogate surrogate, const Parameters<T>& p) {
  return surrogate == Surrogate::exp && (p.detach_weights || weighting == Weighting::none);
}

// ---- weights from a curve ------------------------------------------------------------------------------------------

// Where x lies on the scale of a curve's places, in [0, K − 1]. A NaN is put at the first.
template <typename T>
CW_INLINE T position_on(const cw_ext::Curve<T>& curve, T x) {
  const T last = T(curve.last);
  T t = (x - curve.low) * curve.places_per_unit;
  t = x > curve.low ? t : T(0);
  t = t < last ? t : last;
  return x >= curve.high ? last : t;  // whatever t was rounded to
}

// At place k, and `fraction` of the way to the next.
template <typename T>
struct CurvePlace {
  int32_t k;  // below the last place
  T fraction;
};

template <typename T>
CW_INLINE CurvePlace<T> place_at(const cw_ext::Curve<T>& curve, T position) {
  const int32_t whole = int32_t(position);
  const int32_t k = whole < curve.last ? whole : curve.last - 1;
  return {k, position - T(k)};
}

// log q of a negative at x whose log q is `given` without the curve: `left` and `right` are the curve's values around it.
// Between a value of −∞ and another it is −∞.
template <typename T>
CW_INLINE T log_weight_between(T left, T right, T fraction, T x, T given) {
  const bool masked_here = ((left == -infinity<T>()) & (fraction < T(1))) | ((right == -infinity<T>()) & (fraction > T(0)));
  const bool masked = ((x == x) & masked_here) | (given == -infinity<T>());  // a NaN is nowhere on the curve
  T value = left + fraction * (right - left);
  value = fraction == T(1) ? right : value;
  value = fraction == T(0) ? left : value;
  value = x == x ? given + value : x;
  return masked ? -infinity<T>() : value;
}

// The same, looked up among the curve's values in this row, [K].
template <typename T>
CW_INLINE T curve_log_weight(const cw_ext::Curve<T>& curve, const T* values, T score, T pos, T given) {
  const T x = curve.on_margin ? score - pos : score;
  const CurvePlace<T> place = place_at(curve, position_on(curve, x));
  return log_weight_between(values[place.k], values[place.k + 1], place.fraction, x, given);
}

// ---- one row --------------------------------------------------------------------------------------------------------

// Σ factor·e^exponent = sum·e^max. A sum over many parts may be of a longer type.
template <typename T, typename Sum = T>
struct LogSum {
  T max;
  Sum sum;
};

// What a sum relative to e^max is multiplied by to be relative to e^larger.
template <typename T>
CW_INLINE T relative_to(T max, T larger) {
  return max == larger ? T(1) : exp_nonpositive(max - larger);
}

// The sum over more elements.
template <typename T, typename Sum>
CW_INLINE void add_to(LogSum<T, Sum>& total, const LogSum<T>& more) {
  const T max = more.max > total.max ? more.max : total.max;
  if (max == -infinity<T>()) return;
  total = {max, total.sum * relative_to(total.max, max) + more.sum * relative_to(more.max, max)};
}

template <typename T>
CW_INLINE T log_of(const LogSum<T>& s) {
  return s.max + std::log(s.sum);
}

// What `finish_row` needs of a row.
template <typename T>
struct RowSums {
  T pos;                 // s⁺
  int64_t n_eff;         // negatives that are not masked out
  bool non_finite;       // a NaN or +∞ among the negatives that are not masked out, or among the extra positives
  LogSum<T> negatives;   // Σ q ω e^φ; max = −∞ where there is no mass
  bool has_denominator;  // external weights or normalize_weights: else the denominator is n_eff
  LogSum<T> denominator; // Σ q, or Σ q ω
  int64_t m;             // extra positives
  LogSum<T> positives;   // Σ ω e^φ over them
  cw_ext::RowArguments values;
};

// The row's loss, and its derivatives times gradient_scale.
template <typename T>
struct RowResult {
  T loss;
  bool live;        // has negative mass; else loss and all derivatives are 0
  T by_log_a;       // dloss / d log A
  T by_log_c;       // dloss / d log C
  T by_pos;         // dloss / ds⁺ through the confidence alone
#define CW_VALUE(name) T by_##name;
  CW_ROW_VALUES(CW_VALUE)  // dloss / dπ and so on; by_temperature without the part of the elements
#undef CW_VALUE
};

// The row's loss, whether it is live, and where they are wanted the derivatives by its values.
template <typename T>
CW_INLINE void write_row(const cw_ext::RowResults<T>& out, int64_t b, const RowResult<T>& result) {
  out.loss[b] = result.loss;
  out.live[b] = result.live;
  if (!out.d_values) return;
  T* to = out.d_values + b;
#define CW_VALUE(name)       \
  *to = result.by_##name;    \
  to += out.d_values_stride;
  CW_ROW_VALUES(CW_VALUE)
#undef CW_VALUE
}

// In the place of what write_row() wrote: by_temperature with the part of the elements.
template <typename T>
CW_INLINE void write_temperature(const cw_ext::RowResults<T>& out, int64_t b, T by_temperature) {
  out.d_values[int64_t(cw_ext::RowValuePlace::temperature) * out.d_values_stride + b] = by_temperature;
}

// All derivatives the same: those of a row without negatives, or with a loss that is no number.
template <typename T>
CW_INLINE RowResult<T> without_derivatives(T loss, bool live, T filler) {
#define CW_VALUE(name) filler,
  return {loss, live, filler, filler, filler, CW_ROW_VALUES(CW_VALUE)};
#undef CW_VALUE
}

template <typename T>
CW_INLINE RowResult<T> finish_row(const RowSums<T>& s, const Parameters<T>& p) {
  const T nan = not_a_number<T>(), prior = T(s.values.prior), prior_rest = T(1 - s.values.prior);
  if (s.n_eff == 0) return without_derivatives(T(0), false, T(0));
  const bool prior_in_range = prior >= T(0) && prior_rest > T(0);
  const bool temperature_in_range = p.inv_tau > T(0) && is_finite(p.inv_tau);
  if (s.non_finite || !is_finite(s.pos) || !prior_in_range || !temperature_in_range) return without_derivatives(nan, true, nan);
  if (s.negatives.max == -infinity<T>()) return without_derivatives(T(0), false, T(0));

  const T log_n = std::log(T(s.n_eff));
  const T log_a = log_of(s.negatives) - (s.has_denominator ? log_of(s.denominator) : log_n);
  T log_c;
  if (s.m == 0) {
    log_c = p.log_weight_at_0;
  } else {
    log_c = s.positives.max == -infinity<T>() ? -infinity<T>() : log_of(s.positives) - std::log(T(s.m));
  }

  // With R = πC/A, the mass that the correction leaves is A(1 − R).
  // Clamped: with any π > 0 the floor binds long before, and 0·∞ must not occur.
  const T c_over_a = exp_(log_c - log_a < T(80) ? log_c - log_a : T(80));
  const T share = prior * c_over_a;
  const T left = T(1) - share;
  bool binds;
  T log_mass;
  if (p.has_min_margin) {
    const T corrected = left > T(0) ? log_a + log_rest(share) : -infinity<T>();
    binds = corrected <= p.scaled_min_margin;
    log_mass = binds ? p.scaled_min_margin : corrected;
  } else {
    binds = left <= p.floor;
    log_mass = log_a + (binds ? p.log_floor : log_rest(share));
  }
  const T log_ng = log_n + log_mass - log_of_rest<T>(s.values.prior);

  const T value = (p.include_positive ? softplus(log_ng) : log_ng) + s.pos * p.positive_slope;
  const T outer = p.include_positive ? sigmoid(log_ng) : T(1);
  const T z = p.has_confidence ? (s.pos - T(s.values.threshold)) * p.inv_tau_c : T(0);
  const T confidence = p.has_confidence ? T(2) * sigmoid(z) : T(1);
  const T confidence_slope = p.has_confidence ? confidence * sigmoid(-z) * p.inv_tau_c : T(0);

  const T by_log_g = p.gradient_scale * confidence * outer;
  // A bound m/τ falls with τ, and so does s⁺/τ beside s⁺/τ⁺.
  T by_log_tau = binds && p.has_min_margin ? -by_log_g * p.scaled_min_margin : T(0);
  if (p.has_positive_temperature) by_log_tau -= p.gradient_scale * confidence * s.pos * p.inv_tau;
  const T by_z = p.gradient_scale * confidence_slope * value;
  RowResult<T> r;
  r.loss = confidence * value;
  r.live = true;
  r.by_log_a = by_log_g * (binds ? (p.has_min_margin ? T(0) : T(1)) : T(1) / left);
  r.by_log_c = binds ? T(0) : -by_log_g * share / left;
  r.by_pos = by_z + p.gradient_scale * confidence * p.positive_slope;
  r.by_prior = by_log_g * (T(1) / prior_rest - (binds ? T(0) : c_over_a / left));
  r.by_threshold = -by_z;
  r.by_temperature = by_log_tau * p.inv_tau;
  return r;
}

}  // namespace CW_NAMESPACE
