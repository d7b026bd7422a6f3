// The CPU kernels, compiled once per instruction set. Loops over plain scalars that the compiler vectorises; no standard
// containers or algorithms here, whose instantiations for one instruction set the linker could hand to another.
//
// Included by kernels_*.cpp with CW_ISA set to the namespace to define.

#include "../cw_row.h"
#include "kernels.h"

namespace cw_cpu {
namespace CW_ISA {

using namespace CW_NAMESPACE;

// Sums run in blocks: within one in the compute type, over them in fp64.
constexpr int64_t kBlock = 1024;

// A lambda that a loop to vectorise calls must be inlined into it.
#define CW_INLINE_LAMBDA __attribute__((always_inline))

// ---- element types -------------------------------------------------------------------------------------------------

CW_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

CW_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

CW_INLINE float load(float x) { return x; }
CW_INLINE double load(double x) { return x; }
CW_INLINE float load(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
CW_INLINE float load(Half x) {
  // Moved into fp32's exponent range by one multiplication, which also handles denormals; ∞ and NaN by a select.
  const uint32_t magnitude = x.bits & 0x7FFFu;
  const float finite = from_bits(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  const float special = from_bits(0x7F800000u | (magnitude << 13));
  const float value = magnitude >= 0x7C00u ? special : finite;
  return from_bits(to_bits(value) | (uint32_t(x.bits & 0x8000u) << 16));
}

CW_INLINE void store(float x, float& to) { to = x; }
CW_INLINE void store(double x, double& to) { to = x; }
CW_INLINE void store(float x, BFloat16& to) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  to.bits = uint16_t(x == x ? rounded : 0x7FC0u);
}
CW_INLINE void store(float x, Half& to) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000u;
  const uint32_t magnitude = to_bits(x) & 0x7FFFFFFFu;
  // Normal numbers: the exponent moved, the mantissa rounded to nearest even. Overflow runs into ∞ by itself.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormals: adding ½ lines the mantissa's last bit up with fp16's, and the addition rounds.
  const uint32_t denormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t bits = magnitude < 0x38800000u ? denormal : normal;
  bits = magnitude >= 0x47800000u ? 0x7C00u : bits;
  bits = magnitude > 0x7F800000u ? 0x7E00u : bits;
  to.bits = uint16_t(sign | bits);
}

// The row in the compute type: itself, or a copy in `buffer`.
CW_INLINE const float* in_compute_type(const float* x, int64_t, float*) { return x; }
CW_INLINE const double* in_compute_type(const double* x, int64_t, double*) { return x; }
template <typename In>
CW_INLINE const float* in_compute_type(const In* x, int64_t n, float* buffer) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) buffer[i] = load(x[i]);
  return buffer;
}

template <typename T>
CW_INLINE T at_row(const RowValue<T>& x, int64_t row) {
  return x.rows ? x.rows[row * x.stride] : x.value;
}

template <typename T>
CW_INLINE void fill(T* x, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}

CW_INLINE int64_t block_end(int64_t begin, int64_t n) { return begin + kBlock < n ? begin + kBlock : n; }

// ---- one row -------------------------------------------------------------------------------------------------------

template <typename T>
struct Row {
  T pos;
  const T* neg;  // [N]
  int64_t n;
  const T* extra;  // [M]
  int64_t m;
  const T* log_q;  // [N] or null
  T prior;
  T threshold;
};

template <typename T>
struct RowGradients {
  T pos;
  T* neg;      // [N], always there: it is also where the terms of the sum are kept
  T* extra;    // [M], likewise
  T* log_q;    // [N] or null
  bool wanted;
};

// A surrogate's exponent costs a logarithm: found once and kept. That of exp is found again where it is used.
constexpr bool is_costly(Surrogate s) { return s != Surrogate::exp; }

// The scores [n] of a row, or of its further positives.
template <typename T, bool HasLogQ>
struct Elements {
  const T* scores;
  const T* log_q;
  int64_t n;
  T pos;
  CW_INLINE T log_q_of(int64_t j) const { return HasLogQ ? log_q[j] : T(0); }
};

// The largest exponent, and whether one element spoils the row. Costly exponents are left in `terms`.
template <typename T, Weighting W, Surrogate S, bool HasLogQ>
T largest_exponent(const Elements<T, HasLogQ> x, const Parameters<T>& parameters, T* terms, bool& spoiled) {
  const Parameters<T> p = parameters;  // in registers: a select between two loads would be a branch
  T max = -infinity<T>();
  T spoils = 0;  // a T as the rest of the loop: with an int, GCC 12 gets this reduction wrong for fp64 on AVX-512
  if (!HasLogQ && exponent_rises(W, S, p)) {
#pragma omp simd reduction(max : max) reduction(+ : spoils)
    for (int64_t j = 0; j < x.n; ++j) {
      spoils += x.scores[j] == x.scores[j] ? T(0) : T(1);
      max = x.scores[j] > max ? x.scores[j] : max;
    }
    spoiled |= spoils != T(0) || max == infinity<T>();
    return mass(max, x.pos, T(0), W, S, p).exponent;
  }
#pragma omp simd reduction(max : max) reduction(+ : spoils)
  for (int64_t j = 0; j < x.n; ++j) {
    const T exponent = mass(x.scores[j], x.pos, x.log_q_of(j), W, S, p).exponent;
    if (is_costly(S)) terms[j] = exponent;
    spoils += exponent == exponent ? T(0) : T(1);
    max = exponent > max ? exponent : max;
  }
  spoiled |= spoils != T(0);
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

// Σ factor·e^exponent, and in `terms` each element's term relative to the largest exponent.
template <typename T, Weighting W, Surrogate S, bool HasLogQ>
LogSum<T> sum_masses(const Elements<T, HasLogQ> x, const Parameters<T>& parameters, T* terms, bool& spoiled) {
  const Parameters<T> p = parameters;
  const T max = largest_exponent<T, W, S>(x, p, terms, spoiled);
  if (max == -infinity<T>()) {
    fill(terms, x.n, T(0));
    return {max, T(0)};
  }
  if (W == Weighting::sigmoid && S == Surrogate::exp && !HasLogQ && p.logistic) {
    const T e_max = exp_(max);
    return {max, sum_of(x.n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
              return logistic_term(x.scores[j], x.pos, max, e_max, p);
            })};
  }
  return {max, sum_of(x.n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
            Mass<T> m = mass(x.scores[j], x.pos, x.log_q_of(j), W, S, p);
            if (is_costly(S)) m.exponent = terms[j];
            return term(m, max);
          })};
}

// The denominator where it is not just N: Σ q, or Σ q ω.
template <typename T, Weighting W>
LogSum<T> denominator(const Row<T>& row, const Parameters<T>& parameters, T* terms) {
  const Parameters<T> p = parameters;
  const auto mass_of = [=](int64_t j) CW_INLINE_LAMBDA {
    const T log_q = row.log_q ? row.log_q[j] : T(0);
    return p.normalize_weights ? weight_mass(row.neg[j], row.pos, log_q, W, p) : Mass<T>{log_q, T(1)};
  };
  T max = -infinity<T>();
#pragma omp simd reduction(max : max)
  for (int64_t j = 0; j < row.n; ++j) {
    const T exponent = mass_of(j).exponent;
    max = exponent > max ? exponent : max;
  }
  if (max == -infinity<T>()) {
    fill(terms, row.n, T(0));
    return {max, T(0)};
  }
  return {max, sum_of(row.n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
            return term(mass_of(j), max);
          })};
}

// The gradient of each score: its share of the sum, times the sum's derivative, times the slope. Returns their total.
template <typename T, Weighting W, Surrogate S>
T share_out(const T* scores, int64_t n, T pos, T by_sum, T sum, const Parameters<T>& parameters, T* terms) {
  const Parameters<T> p = parameters;
  const T unit = by_sum / sum;
  if (S == Surrogate::exp && p.detach_weights) {
    const T factor = unit * p.inv_tau;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) terms[j] *= factor;
    return by_sum * p.inv_tau;
  }
  return sum_of(n, terms, [=](int64_t j) CW_INLINE_LAMBDA {
    const T value = terms[j] * unit * slope(scores[j] - pos, W, S, p);
    return terms[j] == T(0) ? T(0) : value;
  });
}

// scratch: [n].
template <typename T, Weighting W, Surrogate S>
RowResult<T> row_kernel(const Row<T>& row, const Parameters<T>& p, RowGradients<T>& gradients, T* scratch) {
  T* const denominator_terms = scratch;

  RowSums<T> sums{};
  sums.pos = row.pos;
  sums.prior = row.prior;
  sums.threshold = row.threshold;
  sums.n_eff = row.n;
  if (row.log_q) {
    int64_t masked = 0;
    for (int64_t j = 0; j < row.n; ++j) masked += row.log_q[j] == -infinity<T>();
    sums.n_eff -= masked;
    const Elements<T, true> negatives{row.neg, row.log_q, row.n, row.pos};
    sums.negatives = sum_masses<T, W, S>(negatives, p, gradients.neg, sums.spoiled);
  } else {
    const Elements<T, false> negatives{row.neg, nullptr, row.n, row.pos};
    sums.negatives = sum_masses<T, W, S>(negatives, p, gradients.neg, sums.spoiled);
  }
  sums.has_denominator = row.log_q || p.normalize_weights;
  if (sums.has_denominator) sums.denominator = denominator<T, W>(row, p, denominator_terms);
  for (int64_t k = 0; k < row.m; ++k) sums.m += !(row.extra[k] == -infinity<T>());
  if (sums.m > 0) {
    const Elements<T, false> extra{row.extra, nullptr, row.m, row.pos};
    sums.positives = sum_masses<T, W, S>(extra, p, gradients.extra, sums.spoiled);
  }

  const RowResult<T> result = finish_row(sums, p);
  if (!gradients.wanted) return result;

  if (!(result.loss == result.loss) || !result.live) {
    const T value = result.live ? not_a_number<T>() : T(0);
    gradients.pos = value;
    fill(gradients.neg, row.n, value);
    fill(gradients.extra, row.m, value);
    if (gradients.log_q) fill(gradients.log_q, row.n, value);
    return result;
  }

  if (gradients.log_q) {
    // Divided before they are subtracted: where one negative is all there is, the difference is 0.
    for (int64_t j = 0; j < row.n; ++j) {
      const T share = gradients.neg[j] / sums.negatives.sum;
      gradients.log_q[j] = result.by_log_a * (share - denominator_terms[j] / sums.denominator.sum);
    }
  }
  T total = share_out<T, W, S>(
      row.neg, row.n, row.pos, result.by_log_a, sums.negatives.sum, p, gradients.neg);
  if (p.normalize_weights && !p.detach_weights) {
    const T unit = result.by_log_a / sums.denominator.sum;
    for (int64_t j = 0; j < row.n; ++j) {
      if (denominator_terms[j] == T(0) || row.neg[j] == -infinity<T>()) continue;
      const T value = denominator_terms[j] * unit * weight_slope(row.neg[j] - row.pos, W, p);
      gradients.neg[j] -= value;
      total -= value;
    }
  }
  if (sums.m > 0 && result.by_log_c != T(0)) {
    total += share_out<T, W, S>(
        row.extra, row.m, row.pos, result.by_log_c, sums.positives.sum, p, gradients.extra);
  } else {
    fill(gradients.extra, row.m, T(0));
  }
  gradients.pos = result.by_pos - total;
  return result;
}

template <typename T>
using RowKernel = RowResult<T> (*)(const Row<T>&, const Parameters<T>&, RowGradients<T>&, T*);

template <typename T, Weighting W>
RowKernel<T> with_surrogate(Surrogate surrogate) {
  switch (surrogate) {
    case Surrogate::tanh:
      return row_kernel<T, W, Surrogate::tanh>;
    case Surrogate::atan:
      return row_kernel<T, W, Surrogate::atan>;
    case Surrogate::relu:
      return row_kernel<T, W, Surrogate::relu>;
    default:
      return row_kernel<T, W, Surrogate::exp>;
  }
}

template <typename T>
RowKernel<T> choose_row_kernel(const Parameters<T>& p) {
  switch (p.weighting) {
    case Weighting::sigmoid:
      return with_surrogate<T, Weighting::sigmoid>(p.surrogate);
    case Weighting::exponential:
      return with_surrogate<T, Weighting::exponential>(p.surrogate);
    case Weighting::linear:
      return with_surrogate<T, Weighting::linear>(p.surrogate);
    default:
      return with_surrogate<T, Weighting::none>(p.surrogate);
  }
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

template <typename In, typename T>
CW_INLINE T squared_norm(const In* x, int64_t dim) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < dim; ++i) sum += T(load(x[i])) * T(load(x[i]));
  return sum;
}

template <typename T>
CW_INLINE T inverse_norm(T squared) {
  return squared == T(0) ? T(0) : T(1) / std::sqrt(squared);
}

template <typename In>
void inverse_norms(const In* x, int64_t dim, typename Compute<In>::type* out, int64_t begin, int64_t end) {
  using T = typename Compute<In>::type;
  for (int64_t i = begin; i < end; ++i) out[i] = inverse_norm(squared_norm<In, T>(x + i * dim, dim));
}

// Four rows at a time, so that their loads overlap.
constexpr int64_t kRows = 4;

template <typename In, typename T>
CW_INLINE void dots(const T* q, const In* const* x, int64_t dim, T* out) {
  const In *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  T a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < dim; ++i) {
    a += q[i] * load(x0[i]);
    b += q[i] * load(x1[i]);
    c += q[i] * load(x2[i]);
    d += q[i] * load(x3[i]);
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

// to += Σ_r factor[r]·x[r]
template <typename In, typename T>
CW_INLINE void add_rows(T* to, const In* const* x, const T* factor, int64_t dim) {
  const In *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  const T a = factor[0], b = factor[1], c = factor[2], d = factor[3];
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    to[i] += (a * load(x0[i]) + b * load(x1[i])) + (c * load(x2[i]) + d * load(x3[i]));
  }
}

template <typename In>
CW_INLINE void prefetch_row(const In* x, int64_t dim) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (int64_t i = 0; i < dim * int64_t(sizeof(In)); i += 64) __builtin_prefetch(bytes + i);
}

constexpr int64_t kAhead = 8;  // rows to prefetch ahead of their use

// A row of ids with what level 2 needs for each: its score, and the inverse norm of its item.
template <typename In, typename T, typename Id>
struct Gather {
  const In* items;
  int64_t num_items;
  int64_t dim;
  const T* known_inverse_norms;  // [I] or null
  bool normalized;

  CW_INLINE const In* item(Id id) const { return items + (id < 0 ? 0 : int64_t(id)) * dim; }

  // The first id that is out of range, or n.
  CW_INLINE int64_t first_bad(const Id* ids, int64_t n) const {
    Id smallest = 0, largest = -1;
#pragma omp simd reduction(min : smallest) reduction(max : largest)
    for (int64_t j = 0; j < n; ++j) {
      smallest = ids[j] < smallest ? ids[j] : smallest;
      largest = ids[j] > largest ? ids[j] : largest;
    }
    if (smallest >= -1 && int64_t(largest) < num_items) return n;
    int64_t j = 0;
    while (int64_t(ids[j]) >= -1 && int64_t(ids[j]) < num_items) ++j;
    return j;
  }

  // scores[j] = scale · q·x_j / |x_j|. Padding gets the item 0's, which the caller masks.
  void scores(const T* q, const Id* ids, int64_t n, T scale, T* scores, T* inverse) const {
    const In* rows[kRows];
    for (int64_t j = 0; j < n && j < kAhead; ++j) prefetch_row(item(ids[j]), dim);
    for (int64_t j = 0; j < n; j += kRows) {
      const int64_t count = n - j < kRows ? n - j : kRows;
      for (int64_t r = 0; r < kRows; ++r) rows[r] = item(ids[r < count ? j + r : j]);
      for (int64_t r = 0; r < kRows && j + kAhead + r < n; ++r) prefetch_row(item(ids[j + kAhead + r]), dim);
      T dot[kRows];
      dots(q, rows, dim, dot);
      for (int64_t r = 0; r < count; ++r) {
        T unit = T(1);
        if (normalized) {
          unit = known_inverse_norms ? known_inverse_norms[ids[j + r] < 0 ? 0 : ids[j + r]]
                                     : inverse_norm(squared_norm<In, T>(rows[r], dim));
        }
        inverse[j + r] = unit;
        scores[j + r] = scale * dot[r] * unit;
      }
    }
  }

  // to += Σ_j coefficients[j]·inverse[j]·x_j. A masked item may hold anything, so `stand_in` [D], which must be finite,
  // is read in the place of items that have no weight.
  void add(const Id* ids, int64_t n, const T* coefficients, const T* inverse, const In* stand_in, T* to) const {
    const In* rows[kRows];
    T factor[kRows];
    for (int64_t j = 0; j < n; j += kRows) {
      for (int64_t r = 0; r < kRows; ++r) {
        const bool counts = j + r < n && coefficients[j + r] != T(0);
        rows[r] = counts ? item(ids[j + r]) : stand_in;
        factor[r] = counts ? coefficients[j + r] * inverse[j + r] : T(0);
      }
      add_rows(to, rows, factor, dim);
    }
  }
};

// The gradient of x̂ = x/|x| carried to x: what is left of g after its part along x̂, over |x|. `unit` is x̂.
template <typename T>
CW_INLINE void through_normalization(T* g, const T* unit, T inverse, int64_t dim) {
  T along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < dim; ++i) along += g[i] * unit[i];
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) g[i] = inverse * (g[i] - along * unit[i]);
}

// scratch: embeddings_scratch(n, m, dim).
template <typename In, typename Id>
BadId embeddings(const EmbeddingsTask<In, Id>& task, int64_t begin, int64_t end,
                 typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const Parameters<T> p = make_parameters<T>(task.arguments);
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t n = task.n, m = task.m, dim = task.dim, width = 1 + m + n;
  const Gather<In, T, Id> negatives{task.items, task.num_items, dim, task.inverse_norms, task.normalized};
  const Gather<In, T, int64_t> positives{task.items, task.num_items, dim, task.inverse_norms, task.normalized};
  const bool wanted = task.coefficients != nullptr;

  // All [1 + m + n] in the coefficients' layout: positive, further positives, negatives.
  T* const score = scratch;
  T* const inverse = score + width;
  T* const log_q = inverse + width;
  T* const row_scratch = log_q + width;           // [3·n + m]
  T* const own_coefficients = row_scratch + 3 * width;
  T* const own_unit = own_coefficients + width;   // [dim]
  T* const d_query = own_unit + dim;              // [dim]

  for (int64_t b = begin; b < end; ++b) {
    const int64_t* const pos_id = task.pos_ids + b;
    const int64_t* const extra_ids = task.extra_ids + b * m;
    const Id* const neg_ids = task.neg_ids + b * n;
    if (positives.first_bad(pos_id, 1) < 1) return {"pos_ids", b, *pos_id};
    const int64_t bad_extra = positives.first_bad(extra_ids, m);
    if (bad_extra < m) return {"extra_pos_ids", b, extra_ids[bad_extra]};
    const int64_t bad = negatives.first_bad(neg_ids, n);
    if (bad < n) return {"neg_ids", b, int64_t(neg_ids[bad])};

    T* const unit = wanted ? task.unit_queries + b * dim : own_unit;
    const In* const query = task.queries + b * dim;
    const T query_inverse = task.normalized ? inverse_norm(squared_norm<In, T>(query, dim)) : T(1);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) unit[i] = load(query[i]) * query_inverse;

    positives.scores(unit, pos_id, 1, task.scale, score, inverse);
    positives.scores(unit, extra_ids, m, task.scale, score + 1, inverse + 1);
    negatives.scores(unit, neg_ids, n, task.scale, score + 1 + m, inverse + 1 + m);
    for (int64_t k = 0; k < m; ++k) {
      if (extra_ids[k] < 0) score[1 + k] = -infinity<T>();
    }
    Id smallest = *pos_id < 0 ? -1 : 0;
#pragma omp simd reduction(min : smallest)
    for (int64_t j = 0; j < n; ++j) smallest = neg_ids[j] < smallest ? neg_ids[j] : smallest;
    const bool padded = smallest < 0;
    const T* const given_log_q = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;
    if (padded) {
      for (int64_t j = 0; j < n; ++j) {
        const bool masked = neg_ids[j] < 0 || *pos_id < 0;
        log_q[j] = masked ? -infinity<T>() : (given_log_q ? given_log_q[j] : T(0));
      }
    }

    Row<T> row;
    row.pos = score[0];
    row.extra = score + 1;
    row.m = m;
    row.neg = score + 1 + m;
    row.n = n;
    row.log_q = padded ? log_q : given_log_q;
    row.prior = at_row(task.prior, b);
    row.threshold = at_row(task.threshold, b);
    T* const coefficients = wanted ? task.coefficients + b * width : own_coefficients;
    RowGradients<T> gradients;
    gradients.wanted = wanted;
    gradients.extra = coefficients + 1;
    gradients.neg = coefficients + 1 + m;
    gradients.log_q = task.out.d_log_q ? task.out.d_log_q + b * n : nullptr;
    const RowResult<T> result = kernel(row, p, gradients, row_scratch);
    write_row(task.out, b, result);
    if (!wanted) continue;

    coefficients[0] = gradients.pos;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) coefficients[c] *= task.scale;
    T* const target = task.d_queries + b * dim;
    fill(d_query, dim, T(0));
    if (result.live) {
      positives.add(pos_id, 1, coefficients, inverse, query, d_query);
      positives.add(extra_ids, m, coefficients + 1, inverse + 1, query, d_query);
      negatives.add(neg_ids, n, coefficients + 1 + m, inverse + 1 + m, query, d_query);
      if (task.normalized) through_normalization(d_query, unit, query_inverse, dim);
    }
    for (int64_t i = 0; i < dim; ++i) target[i] = d_query[i];
  }
  return {};
}

// p / width without a division, for p < 2^32 (Lemire, Kaser and Kurz, 2019).
struct Divider {
  uint64_t magic;
  int64_t width;
  explicit Divider(int64_t w) : magic(w > 1 ? ~uint64_t(0) / uint64_t(w) + 1 : 0), width(w) {}
  CW_INLINE int64_t operator()(uint32_t p) const {
    return width == 1 ? int64_t(p) : int64_t((static_cast<unsigned __int128>(magic) * p) >> 64);
  }
  CW_INLINE int64_t operator()(int64_t p) const { return p / width; }
};

// scratch: item_gradient_scratch(dim). Items [begin, end): each is one thread's, so the sums have one order whatever the threads.
template <typename In, typename Place>
void item_gradient(const ItemGradientTask<In, Place>& task, int64_t begin, int64_t end,
                   typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const int64_t dim = task.dim;
  const int64_t split = task.rows * task.width;
  const Divider row_of(task.width);
  T* const sum = scratch;
  T* const unit = scratch + dim;
  T* const zeros = scratch + 2 * dim;  // stands in for a source that has no weight, and may hold NaN
  fill(zeros, dim, T(0));
  const T* rows[kRows];
  T factor[kRows];
  for (int64_t i = begin; i < end; ++i) {
    In* const target = task.gradient + i * dim;
    fill(sum, dim, T(0));
    const int64_t first = task.offsets[i], last = task.offsets[i + 1];
    bool weighed = false;
    for (int64_t e = first; e < last; e += kRows) {
      for (int64_t r = 0; r < kRows; ++r) {
        const bool there = e + r < last;
        const Place p = task.order[there ? e + r : e];
        const bool paired = int64_t(p) < split;
        factor[r] = !there ? T(0) : paired ? task.coefficients[p] : T(1);
        const T* const source = task.sources + (paired ? row_of(p) : task.rows + int64_t(p) - split) * dim;
        rows[r] = factor[r] == T(0) ? zeros : source;
        weighed |= factor[r] != T(0);
      }
      add_rows(sum, rows, factor, dim);
    }
    if (task.normalized && weighed) {
      const In* const item = task.items + i * dim;
      const T inverse = inverse_norm(squared_norm<In, T>(item, dim));
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) unit[d] = load(item[d]) * inverse;
      through_normalization(sum, unit, inverse, dim);
    }
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) store(sum[d], target[d]);
  }
}

#define CW_INSTANTIATE(In)                                                                                           \
  template void scores<In>(const ScoresTask<In>&, int64_t, int64_t, Compute<In>::type*);                             \
  template void scale_rows<In>(const ScaleRowsTask<In>&, int64_t, int64_t);                                          \
  template BadId embeddings<In, int32_t>(                                                                            \
      const EmbeddingsTask<In, int32_t>&, int64_t, int64_t, Compute<In>::type*);                                     \
  template BadId embeddings<In, int64_t>(                                                                            \
      const EmbeddingsTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*);                                     \
  template void inverse_norms<In>(const In*, int64_t, Compute<In>::type*, int64_t, int64_t);                         \
  template void item_gradient<In, uint32_t>(                                                                         \
      const ItemGradientTask<In, uint32_t>&, int64_t, int64_t, Compute<In>::type*);                                  \
  template void item_gradient<In, int64_t>(                                                                          \
      const ItemGradientTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(Half)
CW_INSTANTIATE(BFloat16)

}  // namespace CW_ISA
}  // namespace cw_cpu
