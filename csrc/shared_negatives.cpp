#include "shared_negatives.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "backend.h"

namespace cw_ext {

namespace {

// Scores in work at a time: 8 MB in fp32.
constexpr int64_t kBlockElements = int64_t(1) << 21;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

PerRow narrowed(const PerRow& x, int64_t begin, int64_t count) {
  return {x.rows.defined() ? x.rows.narrow(0, begin, count) : x.rows, x.value};
}

at::Tensor narrowed(const at::Tensor& x, int64_t begin, int64_t count) {
  return x.defined() ? x.narrow(0, begin, count) : x;
}

}  // namespace

at::Tensor unit_rows(const at::Tensor& x) {
  const at::Tensor norm = at::linalg_vector_norm(x, 2, {-1}, true);
  return x / norm.masked_fill(norm == 0, kInfinity);
}

namespace {

// [n] or [n, m] ids → their rows [.., D] in the compute dtype, divided by their norms if asked.
at::Tensor gathered(const at::Tensor& items, const at::Tensor& ids, bool normalized, at::ScalarType compute) {
  // Padding reads item 0. Any other negative id is sent out of range, where indexing stops it on every device.
  const at::Tensor places = ids.masked_fill(ids < -1, items.size(0)).clamp_min_(0).reshape(-1);
  const at::Tensor rows = items.index_select(0, places).to(compute);
  const at::Tensor unit = normalized ? unit_rows(rows) : rows;
  auto shape = ids.sizes().vec();
  shape.push_back(items.size(1));
  return unit.reshape(shape);
}

}  // namespace

at::Tensor finite_or_zero(const at::Tensor& x) { return x.masked_fill(x.isfinite().logical_not_(), 0); }

void shared_negatives(const SharedNegativesCall& call) {
  const auto compute = call.out.loss.scalar_type();
  const int64_t rows = call.queries.size(0), n = call.neg_ids.size(0), m = call.extra_ids.size(1);

  const at::Tensor queries = call.queries.to(compute);
  const at::Tensor unit = call.normalized ? unit_rows(queries) : queries;
  const at::Tensor negatives = gathered(call.items, call.neg_ids, call.normalized, compute);  // [N, D]
  const at::Tensor scaled_negatives_t = (negatives * call.scale).t();
  const at::Tensor finite_negatives = finite_or_zero(negatives);
  // [N]: −∞ for padding. Whether there is any is not asked, which would wait for the device.
  const at::Tensor column_log_q = at::zeros({n}, negatives.options()).masked_fill_(call.neg_ids < 0, -kInfinity);

  const int64_t block = std::max<int64_t>(1, kBlockElements / n);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    const at::Tensor q = unit.narrow(0, begin, count);
    const at::Tensor pos_ids = call.pos_ids.narrow(0, begin, count);
    const at::Tensor extra_ids = call.extra_ids.narrow(0, begin, count);
    const at::Tensor positives = gathered(call.items, pos_ids, call.normalized, compute);  // [b, D]
    const at::Tensor extras = gathered(call.items, extra_ids, call.normalized, compute);   // [b, M, D]
    const at::Tensor pos = (q * positives).sum(-1) * call.scale;
    const at::Tensor extra =
        (at::bmm(extras, q.unsqueeze(-1)).squeeze(-1) * call.scale).masked_fill_(extra_ids < 0, -kInfinity);

    ScoresCall scores;
    scores.arguments = call.arguments;
    scores.pos = pos;
    scores.neg = at::mm(q, scaled_negatives_t);  // [b, N]
    scores.extra = extra.contiguous();
    scores.log_q = narrowed(call.log_q, begin, count);
    scores.log_q = scores.log_q.defined() ? scores.log_q.masked_fill(call.neg_ids < 0, -kInfinity)
                                          : column_log_q.expand({count, n});
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
      scores.d_neg = call.shared_coefficients.narrow(0, begin, count);
      scores.d_extra = at::empty({count, m}, pos.options());
    }
    run_scores(scores);

    // A row whose positive is padding is dead.
    const at::Tensor dead = pos_ids < 0;
    scores.out.loss.masked_fill_(dead, 0);
    scores.out.live.masked_fill_(dead, false);
    scores.out.d_prior.masked_fill_(dead, 0);
    scores.out.d_threshold.masked_fill_(dead, 0);
    if (scores.out.d_log_q.defined()) scores.out.d_log_q.masked_fill_(dead.unsqueeze(-1), 0);
    if (!call.with_gradients) continue;
    scores.d_pos.masked_fill_(dead, 0);
    scores.d_neg.masked_fill_(dead.unsqueeze(-1), 0);
    scores.d_extra.masked_fill_(dead.unsqueeze(-1), 0);

    at::Tensor coefficients = call.coefficients.narrow(0, begin, count);  // [b, 1 + M]
    coefficients.select(1, 0).copy_(scores.d_pos);
    coefficients.narrow(1, 1, m).copy_(scores.d_extra);
    coefficients.mul_(call.scale);
    at::Tensor d_unit = at::mm(scores.d_neg, finite_negatives) * call.scale;
    d_unit.add_(positives * coefficients.select(1, 0).unsqueeze(-1));
    d_unit.add_(at::bmm(coefficients.narrow(1, 1, m).unsqueeze(1), extras).squeeze(1));
    if (call.normalized) {
      const at::Tensor norm = at::linalg_vector_norm(queries.narrow(0, begin, count), 2, {-1}, true);
      d_unit = (d_unit - q * (q * d_unit).sum(-1, true)) / norm.masked_fill(norm == 0, kInfinity);
    }
    call.d_queries.narrow(0, begin, count).copy_(d_unit);
  }
  if (call.with_gradients) call.unit_queries.copy_(unit);
}

}  // namespace cw_ext
