// Level 2 where all rows share their negatives: matrix products around level 1, a block of rows at a time.
//
// Tables in bf16 go to the tensor cores as they are: products of bf16 numbers are exact in fp32, in which they are summed,
// and level 1 multiplies by the inverse norms as it reads the scores. The coefficients are rounded to bf16 for the
// products that carry them back. Other dtypes are multiplied in the compute dtype: fp32 in TF32 where the user allows it,
// as for any product of torch's.
#include "../shared_negatives.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "../backend.h"
#include "shared_products.h"

namespace cw_cuda {

using cw_ext::PerRow;
using cw_ext::ScoresCall;
using cw_ext::SharedNegativesCall;

namespace {

// Scores in work at a time: 32 MB in fp32, which stay in the L2 cache of a large GPU.
constexpr int64_t kBlockElements = int64_t(1) << 23;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

PerRow narrowed(const PerRow& x, int64_t begin, int64_t count) {
  return {x.rows.defined() ? x.rows.narrow(0, begin, count) : x.rows, x.value};
}

at::Tensor narrowed(const at::Tensor& x, int64_t begin, int64_t count) {
  return x.defined() ? x.narrow(0, begin, count) : x;
}

// 1/|x| [..., 1] in the compute dtype, 0 for a zero row; undefined where nothing is normalised.
at::Tensor inverse_norms(const at::Tensor& x, bool normalized, at::ScalarType compute) {
  if (!normalized) return {};
  const at::Tensor norm = at::linalg_vector_norm(x, 2, {-1}, true, compute);
  return norm.masked_fill(norm == 0, kInfinity).reciprocal_();
}

// [n] or [n, m] ids → their rows [.., D] in the table's dtype; zeros for padding.
at::Tensor gathered(const at::Tensor& items, const at::Tensor& ids) {
  // Padding reads item 0 first. Any other negative id is sent out of range, where indexing stops it on every device.
  const at::Tensor places = ids.masked_fill(ids < -1, items.size(0)).clamp_min_(0).reshape(-1);
  auto shape = ids.sizes().vec();
  shape.push_back(items.size(1));
  return items.index_select(0, places).reshape(shape).masked_fill_((ids < 0).unsqueeze(-1), 0);
}

at::Tensor times(const at::Tensor& x, const at::Tensor& inverse, at::ScalarType compute) {
  return inverse.defined() ? x.to(compute) * inverse : x.to(compute);
}

at::Tensor unit_rows(const at::Tensor& x, bool normalized, at::ScalarType compute) {
  return times(x, inverse_norms(x, normalized, compute), compute);
}

}  // namespace

at::Tensor finite_or_zero(const at::Tensor& x) { return x.masked_fill(x.isfinite().logical_not_(), 0); }

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_cuda() && a.scalar_type() == at::kBFloat16) return at::mm(a, b, at::kFloat);
  const auto compute = a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::mm(a.to(compute), b.to(compute));
}

void shared_negatives(const SharedNegativesCall& call) {
  const auto compute = call.out.loss.scalar_type();
  const int64_t rows = call.queries.size(0), n = call.neg_ids.size(0), m = call.extra_ids.size(1);
  const bool raw = call.items.scalar_type() == at::kBFloat16;

  const at::Tensor query_inverse = inverse_norms(call.queries, call.normalized, compute);  // [B, 1]
  const at::Tensor unit = times(call.queries, query_inverse, compute);
  const at::Tensor rows_of_negatives = gathered(call.items, call.neg_ids);                             // [N, D]
  const at::Tensor negative_inverse = inverse_norms(rows_of_negatives, call.normalized, compute);      // [N, 1]
  const at::Tensor negatives = times(rows_of_negatives, negative_inverse, compute);
  const at::Tensor left = raw ? call.queries : unit * call.scale;
  const at::Tensor right = raw ? rows_of_negatives.t() : negatives.t();
  // Padding is masked out: negatives, and whole rows whose positive it is. Whether there is any is not asked, which would
  // wait for the device.
  const at::Tensor row_scale = (raw && call.normalized ? query_inverse.squeeze(-1) * call.scale
                                                       : at::full({rows}, raw ? call.scale : 1, unit.options()))
                                   .masked_fill_(call.pos_ids < 0, -1);
  const at::Tensor column_scale =
      (raw && call.normalized ? negative_inverse.squeeze(-1) : at::ones({n}, unit.options()))
          .masked_fill(call.neg_ids < 0, -1);
  const at::Tensor carried = finite_or_zero(raw ? negatives.to(at::kBFloat16) : negatives);

  const int64_t block = std::max<int64_t>(1, kBlockElements / n);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    const at::Tensor q = unit.narrow(0, begin, count);
    const at::Tensor pos_ids = call.pos_ids.narrow(0, begin, count);
    const at::Tensor extra_ids = call.extra_ids.narrow(0, begin, count);
    const at::Tensor positives = unit_rows(gathered(call.items, pos_ids), call.normalized, compute);  // [b, D]
    const at::Tensor extras = unit_rows(gathered(call.items, extra_ids), call.normalized, compute);   // [b, M, D]
    const at::Tensor pos = (q * positives).sum(-1) * call.scale;
    const at::Tensor extra =
        (at::bmm(extras, q.unsqueeze(-1)).squeeze(-1) * call.scale).masked_fill_(extra_ids < 0, -kInfinity);

    ScoresCall scores;
    scores.arguments = call.arguments;
    scores.pos = pos;
    scores.neg = product(left.narrow(0, begin, count), right);  // [b, N]
    scores.row_scale = narrowed(row_scale, begin, count);
    scores.column_scale = column_scale;
    scores.extra = extra.contiguous();
    scores.log_q = narrowed(call.log_q, begin, count);
    scores.prior = narrowed(call.prior, begin, count);
    scores.threshold = narrowed(call.threshold, begin, count);
    scores.with_gradients = call.with_gradients;
    scores.out.loss = call.out.loss.narrow(0, begin, count);
    scores.out.live = call.out.live.narrow(0, begin, count);
    scores.out.d_log_q = narrowed(call.out.d_log_q, begin, count);
    scores.out.d_prior = call.out.d_prior.narrow(0, begin, count);
    scores.out.d_threshold = call.out.d_threshold.narrow(0, begin, count);
    if (call.with_gradients) {
      scores.d_pos = at::empty({count}, pos.options());
      scores.d_neg = raw ? at::empty({count, n}, pos.options()) : call.shared_coefficients.narrow(0, begin, count);
      scores.d_extra = at::empty({count, m}, pos.options());
    }
    cw_cuda::scores(scores);

    if (!call.with_gradients) continue;

    const at::Tensor shared = call.shared_coefficients.narrow(0, begin, count);
    if (raw) shared.copy_(scores.d_neg);
    at::Tensor coefficients = call.coefficients.narrow(0, begin, count);  // [b, 1 + M]
    coefficients.select(1, 0).copy_(scores.d_pos);
    coefficients.narrow(1, 1, m).copy_(scores.d_extra);
    coefficients.mul_(call.scale);
    at::Tensor d_unit = product(shared, carried) * call.scale;
    d_unit.add_(positives * coefficients.select(1, 0).unsqueeze(-1));
    d_unit.add_(at::bmm(coefficients.narrow(1, 1, m).unsqueeze(1), extras).squeeze(1));
    if (call.normalized) {
      d_unit = (d_unit - q * (q * d_unit).sum(-1, true)) * query_inverse.narrow(0, begin, count);
    }
    // The query of a dead row may hold anything.
    d_unit.masked_fill_(scores.out.live.logical_not().unsqueeze(-1), 0);
    call.d_queries.narrow(0, begin, count).copy_(d_unit);
  }
  if (call.with_gradients) call.unit_queries.copy_(unit);
}

}  // namespace cw_cuda
