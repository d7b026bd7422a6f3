// Level 2 where all rows share their negatives: matrix products around level 1, a block of rows at a time.
//
// Tables in bf16 go to the tensor cores as they are: products of bf16 numbers are exact in fp32, in which they are summed,
// and level 1 multiplies by the inverse norms as it reads the scores. The coefficients are rounded to bf16 for the
// products that carry them back. Other dtypes are multiplied in the compute dtype: fp32 in TF32 where the user allows it,
// as for any product of torch's.
#include "../shared_negatives.h"


#include <algorithm>
#include <limits>

#include "shared_products.h"
#include "tensors.h"

namespace cw_cuda {

using cw_ext::Exclusion;
using cw_ext::ScoresCall;
using cw_ext::SharedNegativesCall;

namespace {

// Scores handled at a time: 32 MB in fp32, which stay in the L2 cache of a large GPU.
#ifdef CW_CUDA_EMULATION  // so few that tests come to several blocks
constexpr int64_t kBlockElements = int64_t(1) << 10;
#else
constexpr int64_t kBlockElements = int64_t(1) << 23;
#endif

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// 1/|x| [..., 1] in the compute dtype, 0 for a zero row; undefined where nothing is normalised.
Tensor inverse_norms(const Tensor& x, bool normalized, ScalarType compute) {
  if (!normalized) return {};
  const Tensor norm = at::linalg_vector_norm(x, 2, {-1}, true, compute);
  return norm.masked_fill(norm == 0, kInfinity).reciprocal_();
}

// [n] or [n, m] ids → their rows [.., D] in the table's dtype; zeros for padding.
Tensor gathered(const Tensor& items, const Tensor& ids) {
  // Padding reads item 0 first. Any other negative id is sent out of range, where indexing stops it on every device.
  const Tensor places = ids.masked_fill(ids < -1, items.size(0)).clamp_min_(0).reshape(-1);
  auto shape = ids.sizes().vec();
  shape.push_back(items.size(1));
  return items.index_select(0, places).reshape(shape).masked_fill_((ids < 0).unsqueeze(-1), 0);
}

Tensor times(const Tensor& x, const Tensor& inverse, ScalarType compute) {
  return inverse.defined() ? x.to(compute) * inverse : x.to(compute);
}

Tensor unit_rows(const Tensor& x, bool normalized, ScalarType compute) {
  return times(x, inverse_norms(x, normalized, compute), compute);
}

// The factors that level 1 multiplies raw products by. A product of −∞ marks a negative that is left out, and must stay
// −∞, which it does not times 0 or NaN; other products with a zero row are 0 for any scale, and those with a NaN
// are NaN.
Tensor scale_of_products(const Tensor& inverse, bool excludes) {
  constexpr double kSmallest = 1e-18;  // twice in a product; a norm that is larger does not fit fp32 when squared
  const Tensor scale = inverse.squeeze(-1);
  return excludes ? scale.masked_fill(scale.isnan(), 0).clamp_min_(kSmallest) : scale;
}

// Writes −∞ where the rows [begin, begin + values.size(0)) leave columns out; counts those to `excluded`, unless it is
// undefined.
void leave_out(const SharedNegativesCall& call, int64_t begin, const Tensor& values, const Tensor& excluded) {
  const Exclusion& exclusion = call.exclusion;
  NegativeSource source = source_of(exclusion.history);
  if (source.query_ids) source.query_ids += begin;
  source.pos_ids = input<int64_t>(call.pos_ids) + begin;
  with_compute_type(values.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ExclusionTask<T> task{source,
                                num_known(exclusion.history),
                                input<int64_t>(call.pos_ids) + begin,
                                input<int32_t>(exclusion.first_column),
                                input<int32_t>(exclusion.next_column),
                                call.items.size(0),
                                values.size(0),
                                values.size(1),
                                output<T>(values),
                                output<int32_t>(excluded)};
    C10_CUDA_CHECK(launch_exclusion(task, c10::cuda::getCurrentCUDAStream()));
  });
}

// Leaves out of the block what its rows, from `begin` on, leave out: by scores of −∞ that are not counted, which level
// 1's fast forms take. By log weights of −∞ where a score of −∞ counts in the denominator, or there are log weights or a
// curve of them.
void exclude(const SharedNegativesCall& call, int64_t begin, ScoresCall& block) {
  const bool through_log_q =
      call.loss.arguments.normalize_weights || call.log_q.defined() || call.loss.curve.log_weights.defined();
  if (!through_log_q) {
    block.excluded = at::empty({block.neg.size(0)}, options_of(block.neg, kInt));
    leave_out(call, begin, block.neg, block.excluded);
    return;
  }
  block.log_q = call.log_q.defined() ? block.log_q.clone(at::MemoryFormat::Contiguous) : at::zeros_like(block.neg);
  leave_out(call, begin, block.log_q, Tensor());
}

}  // namespace

Tensor finite_or_zero(const Tensor& x) { return x.masked_fill(x.isfinite().logical_not_(), 0); }

Tensor product(const Tensor& a, const Tensor& b) {
  if (a.is_cuda() && a.scalar_type() == kBFloat16) return at::mm(a, b, kFloat);
  const auto compute = a.scalar_type() == kDouble ? kDouble : kFloat;
  return at::mm(a.to(compute), b.to(compute));
}

void add_product(const Tensor& sum, const Tensor& a, const Tensor& b, double factor) {
  if (a.is_cuda() && a.scalar_type() == kBFloat16) {
    sum.add_(product(a, b), factor);
  } else {
    sum.addmm_(a.to(sum.scalar_type()), b.to(sum.scalar_type()), 1, factor);
  }
}

void shared_negatives(const SharedNegativesCall& call) {
  const c10::cuda::CUDAGuard guard(call.queries.device());
  const auto compute = call.out.loss.scalar_type();
  const int64_t rows = call.queries.size(0), n = call.neg_ids.size(0), m = call.extra_ids.size(1);
  const bool raw = call.items.scalar_type() == kBFloat16, by_norms = raw && call.normalized;
  const bool excludes = call.exclusion.first_column.defined();

  const Tensor query_inverse = inverse_norms(call.queries, call.normalized, compute);  // [B, 1]
  const Tensor unit = times(call.queries, query_inverse, compute);
  Tensor rows_of_negatives = gathered(call.items, call.neg_ids);                             // [N, D]
  if (by_norms && excludes) {
    // Products of −∞ then mark what rows leave out: an item that is not finite must not have them.
    rows_of_negatives.masked_fill_(rows_of_negatives.isfinite().all(-1, true).logical_not_(), kNaN);
  }
  const Tensor negative_inverse = inverse_norms(rows_of_negatives, call.normalized, compute);      // [N, 1]
  Tensor negatives = times(rows_of_negatives, negative_inverse, compute);
  const Tensor left = raw ? call.queries : unit * call.scale;
  const Tensor right = raw ? rows_of_negatives.t() : negatives.t();
  // Padding is masked out: negatives, and whole rows whose positive it is. This is done always, as a check for padding would
  // wait for the device.
  const Tensor row_scale = (by_norms ? scale_of_products(query_inverse, excludes) * call.scale
                                         : at::full({rows}, raw ? call.scale : 1, options_of(unit)))
                                   .masked_fill_(call.pos_ids < 0, -1);
  const Tensor column_scale =
      (by_norms ? scale_of_products(negative_inverse, excludes) : at::ones({n}, options_of(unit)))
          .masked_fill(call.neg_ids < 0, -1);
  const Tensor carried = finite_or_zero(raw ? negatives.to(kBFloat16) : negatives);
  // One of them goes on as `right`; with all items as negatives, the other is worth its memory.
  rows_of_negatives.reset();
  negatives.reset();

  const int64_t block = std::max<int64_t>(1, kBlockElements / n);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    const Tensor q = unit.narrow(0, begin, count);
    const Tensor pos_ids = call.pos_ids.narrow(0, begin, count);
    const Tensor extra_ids = call.extra_ids.narrow(0, begin, count);
    const Tensor positives = unit_rows(gathered(call.items, pos_ids), call.normalized, compute);  // [b, D]
    const Tensor extras = unit_rows(gathered(call.items, extra_ids), call.normalized, compute);   // [b, M, D]
    const Tensor pos = (q * positives).sum(-1) * call.scale;
    const Tensor extra =
        (at::bmm(extras, q.unsqueeze(-1)).squeeze(-1) * call.scale).masked_fill_(extra_ids < 0, -kInfinity);

    ScoresCall scores;
    scores.loss = narrowed(call.loss, begin, count);
    scores.pos = pos;
    scores.neg = product(left.narrow(0, begin, count), right);  // [b, N]
    scores.row_scale = narrowed(row_scale, begin, count);
    scores.column_scale = column_scale;
    scores.extra = extra.contiguous();
    scores.log_q = narrowed(call.log_q, begin, count);
    scores.with_gradients = call.with_gradients;
    scores.out = narrowed(call.out, begin, count);
    if (excludes) exclude(call, begin, scores);
    Tensor shared = narrowed(call.shared_coefficients, begin, count);  // undefined: not kept beyond the block
    if (call.with_gradients) {
      scores.d_pos = at::empty({count}, options_of(pos));
      scores.d_neg = raw || !shared.defined() ? at::empty({count, n}, options_of(pos)) : shared;
      scores.d_extra = at::empty({count, m}, options_of(pos));
    }
    cw_cuda::scores(scores);

    if (!call.with_gradients) continue;

    if (!shared.defined()) {
      shared = raw ? scores.d_neg.to(kBFloat16) : scores.d_neg;
    } else if (raw) {
      shared.copy_(scores.d_neg);
    }
    Tensor coefficients = call.coefficients.narrow(0, begin, count);  // [b, 1 + M]
    coefficients.select(1, 0).copy_(scores.d_pos);
    coefficients.narrow(1, 1, m).copy_(scores.d_extra);
    coefficients.mul_(call.scale);
    Tensor d_unit = product(shared, carried) * call.scale;
    d_unit.add_(positives * coefficients.select(1, 0).unsqueeze(-1));
    // An extra positive with a score of −∞ has the coefficient 0, and may hold anything.
    d_unit.add_(at::bmm(coefficients.narrow(1, 1, m).unsqueeze(1), finite_or_zero(extras)).squeeze(1));
    if (call.normalized) {
      d_unit = (d_unit - q * (q * d_unit).sum(-1, true)) * query_inverse.narrow(0, begin, count);
    }
    // The query of a dead row may hold anything.
    d_unit.masked_fill_(scores.out.live.logical_not().unsqueeze(-1), 0);
    call.d_queries.narrow(0, begin, count).copy_(d_unit);
    if (!call.negative_sums.defined()) continue;
    const Tensor sources =
        call.row_factor.defined() ? q * call.row_factor.narrow(0, begin, count).unsqueeze(-1) : q;
    add_product(call.negative_sums, shared.t(), finite_or_zero(sources).to(shared.scalar_type()), call.scale);
  }
  if (call.with_gradients) call.unit_queries.copy_(unit);
}

}  // namespace cw_cuda
