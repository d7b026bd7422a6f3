// The ops: schemas, checks and allocation, once for all backends. Those that draw negatives, or
// take all items: ops_sampled.cpp.
#include <torch/library.h>

#include <tuple>

#include "op_arguments.h"
#include "shared_negatives.h"

namespace cw_ext {

void run_scores(const ScoresCall& call) {
#ifdef CW_WITH_CUDA
  if (on_cuda(call.pos)) return cw_cuda::scores(call);
#endif
  cw_cpu::scores(call);
}

void run_embeddings(const EmbeddingsCall& call) {
#ifdef CW_WITH_CUDA
  if (on_cuda(call.queries)) return cw_cuda::embeddings(call);
#endif
  cw_cpu::embeddings(call);
}

void run_item_gradient(const ItemGradientCall& call) {
#ifdef CW_WITH_CUDA
  if (on_cuda(call.items)) return cw_cuda::item_gradient(call);
#endif
  cw_cpu::item_gradient(call);
}

void run_shared_negatives(const SharedNegativesCall& call) {
#ifdef CW_WITH_CUDA
  if (on_cuda(call.queries)) return cw_cuda::shared_negatives(call);
#endif
  cw_cpu::shared_negatives(call);
}

namespace {

using ScoresResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor>;

ScoresResult scores_forward(const at::Tensor& pos, const at::Tensor& neg, const OptionalTensor& extra,
                            const OptionalTensor& log_q, CW_LOSS_PARAMETERS, c10::string_view reduction,
                            bool with_gradients, bool with_log_q_gradient) {
  TORCH_CHECK_VALUE(pos.dim() == 1 && neg.dim() == 2, "pos must be [B] and neg [B, N], got ", pos.sizes(), " and ",
                    neg.sizes());
  const int64_t rows = pos.size(0), n = neg.size(1);
  TORCH_CHECK_VALUE(n > 0, "neg must hold at least one negative per row, got ", neg.sizes());
  check_shape(neg, {rows, n}, "neg", pos);
  check_type(neg, pos.scalar_type(), "neg");
  const int64_t m = extra && extra->dim() == 2 ? extra->size(1) : 0;
  if (extra) {
    check_shape(*extra, {rows, m}, "extra", pos);
    check_type(*extra, pos.scalar_type(), "extra");
  }
  const auto options = pos.options().dtype(compute_type(pos));

  ScoresCall call;
  call.arguments = CW_LOSS_ARGUMENTS;
  call.pos = pos;
  call.neg = with_contiguous_rows(neg);
  call.extra = extra ? with_contiguous_rows(*extra) : at::empty({rows, 0}, pos.options());
  call.log_q = log_weights(log_q, rows, n, pos);
  call.prior = per_row(prior_rows, prior, rows, "prior_rows", pos);
  call.threshold = per_row(threshold_rows, threshold, rows, "threshold_rows", pos);
  call.with_gradients = with_gradients;
  call.out = allocate_rows(rows, n, with_log_q_gradient && call.log_q.defined(), options);
  if (with_gradients) {
    call.d_pos = at::empty({rows}, options);
    call.d_neg = empty_large({rows, n}, kept_options(pos));
    call.d_extra = at::empty({rows, m}, options);
  }
  if (rows > 0) run_scores(call);
  const auto [loss, rescale] = reduced(call.out, reduction);
  return {loss,
          call.out.live,
          rescale,
          or_empty(call.d_pos, options),
          or_empty(call.d_neg, options),
          or_empty(call.d_extra, options),
          or_empty(call.out.d_log_q, options),
          call.out.d_prior,
          call.out.d_threshold};
}

using EmbeddingsResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

EmbeddingsResult embeddings_forward(const at::Tensor& queries, const at::Tensor& items, const at::Tensor& pos_ids,
                                    const at::Tensor& neg_ids, const OptionalTensor& extra_ids,
                                    const OptionalTensor& log_q, CW_EXCLUSION_PARAMETERS, CW_LOSS_PARAMETERS,
                                    c10::string_view similarity, c10::string_view reduction, bool with_gradients,
                                    bool with_log_q_gradient) {
  TORCH_CHECK_VALUE(queries.dim() == 2 && items.dim() == 2 && queries.size(1) > 0,
                    "queries must be [B, D] and items [I, D], got ", queries.sizes(), " and ", items.sizes());
  const int64_t rows = queries.size(0), dim = queries.size(1);
  check_shape(items, {items.size(0), dim}, "items", queries);
  check_type(items, queries.scalar_type(), "items");
  const Ids ids = check_ids(queries, rows, pos_ids, neg_ids, extra_ids);
  const int64_t n = ids.n, m = ids.extra.size(1);
  const bool shared = ids.shared.defined();
  const auto [scale, normalized] = similarity_of(similarity);
  const auto options = queries.options().dtype(compute_type(queries));

  const auto fill = [&](auto& call) {
    call.arguments = CW_LOSS_ARGUMENTS;
    call.queries = queries.contiguous();
    call.items = items.contiguous();
    call.pos_ids = ids.pos;
    call.neg_ids = shared ? ids.shared : ids.neg;
    call.extra_ids = ids.extra;
    call.log_q = log_weights(log_q, rows, n, queries);
    call.prior = per_row(prior_rows, prior, rows, "prior_rows", queries);
    call.threshold = per_row(threshold_rows, threshold, rows, "threshold_rows", queries);
    call.scale = scale;
    call.normalized = normalized;
    call.with_gradients = with_gradients;
    call.out = allocate_rows(rows, n, with_log_q_gradient && call.log_q.defined(), options);
    if (with_gradients) {
      call.d_queries = at::empty({rows, dim}, options);
      call.unit_queries = at::empty({rows, dim}, options);
      call.coefficients = empty_large({rows, shared ? 1 + m : 1 + m + n}, options);
    }
  };
  const auto results = [&](const auto& call, const at::Tensor& shared_coefficients, const at::Tensor& pair_keys,
                           const at::Tensor& pair_ends) -> EmbeddingsResult {
    const auto [loss, rescale] = reduced(call.out, reduction);
    return {loss,
            call.out.live,
            rescale,
            or_empty(call.d_queries, options),
            or_empty(call.unit_queries, options),
            or_empty(call.coefficients, options),
            or_empty(shared_coefficients, options),
            or_empty(pair_keys, options.dtype(at::kShort)),
            or_empty(pair_ends, options.dtype(at::kInt)),
            or_empty(call.out.d_log_q, options),
            call.out.d_prior,
            call.out.d_threshold};
  };

  if (shared) {
    SharedNegativesCall call;
    fill(call);
    if (with_gradients) call.shared_coefficients = at::empty({rows, n}, kept_options(queries));
    if (rows > 0) {
      check_range(ids.pos, items.size(0), "pos_ids");
      check_range(ids.shared, items.size(0), "neg_ids");
      check_range(ids.extra, items.size(0), "extra_pos_ids");
      if (exclude) {
        call.exclusion = exclusion(ids.shared, items.size(0), history(query_ids, starts, known, rows, queries));
      }
      const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      run_shared_negatives(call);
    }
    return results(call, call.shared_coefficients, at::Tensor(), at::Tensor());
  }
  TORCH_CHECK_VALUE(!exclude, "exclude is for negatives that all rows share");
  EmbeddingsCall call;
  fill(call);
  if (with_gradients && !on_cuda(queries)) {
    call.pair_keys = cw_cpu::pair_keys(rows, 1 + m + n, queries);
    call.pair_ends = cw_cpu::pair_ends(rows, 1 + m + n, items.size(0), queries);
  }
  if (rows > 0) {
    TORCH_CHECK_VALUE(items.size(0) > 0, "items must have at least one row, got ", items.sizes());
    run_embeddings(call);
  }
  return results(call, at::Tensor(), call.pair_keys, call.pair_ends);
}

// Rows' gradients times the gradients of their losses, in the dtype of the inputs that they belong to.
std::vector<at::Tensor> scale_rows(at::TensorList gradients, const at::Tensor& factor, at::ScalarType dtype) {
  std::vector<at::Tensor> results;
  results.reserve(gradients.size());
  for (const at::Tensor& x : gradients) {
    const at::Tensor own_factor = (factor.dim() > 0 ? factor : factor.expand({x.size(0)})).contiguous();
    results.push_back(empty_large(x.sizes(), x.options().dtype(dtype)));
    at::Tensor& out = results.back();
    check_shape(own_factor, {x.size(0)}, "factor", x);
    TORCH_CHECK_TYPE(x.scalar_type() == compute_type(out) || x.scalar_type() == dtype, "gradients must have dtype ",
                     compute_type(out), " or ", dtype, ", got ", x.scalar_type());
    check_type(factor, compute_type(out), "factor");
    if (!on_cuda(x) && x.scalar_type() == compute_type(out)) {
      cw_cpu::scale_rows(x.contiguous(), own_factor, out);
    } else {
      std::vector<int64_t> column(x.dim(), 1);
      column[0] = x.size(0);
      at::mul_out(out, x, own_factor.reshape(column));
    }
  }
  return results;
}

// The same, in the place of the gradients. Where the factor is 1, as it is for a mean over live rows whose own gradient is
// 1, they are left alone: at level 1 that saves half of a step's traffic.
void scale_rows_(at::TensorList gradients, const at::Tensor& factor) {
  for (const at::Tensor& x : gradients) {
    TORCH_CHECK_VALUE(factor.dim() == 0 || (factor.dim() == 1 && x.dim() > 0 && factor.size(0) == x.size(0)),
                      "factor must be one number or one per row of the gradients, got ", factor.sizes(), " for ",
                      x.sizes());
    TORCH_CHECK_VALUE(factor.device() == x.device(), "factor must be on ", x.device(), ", got ", factor.device());
    check_type(factor, compute_type(x), "factor");
    if (x.numel() == 0) continue;
#ifdef CW_WITH_CUDA
    if (on_cuda(x)) {
      TORCH_CHECK_VALUE(x.is_contiguous(), "gradients must be contiguous");
      cw_cuda::scale_in_place(x, factor.contiguous());
      continue;
    }
#endif
    if (factor.dim() == 0) {
      if (factor.item<double>() != 1) x.mul_(factor);
    } else {
      std::vector<int64_t> column(x.dim(), 1);
      column[0] = x.size(0);
      x.mul_(factor.reshape(column));
    }
  }
}

at::Tensor item_gradient(const at::Tensor& unit_queries, const OptionalTensor& factor, const at::Tensor& coefficients,
                         const at::Tensor& shared_coefficients, const at::Tensor& pair_keys,
                         const at::Tensor& pair_ends, const at::Tensor& items, const at::Tensor& pos_ids,
                         const at::Tensor& neg_ids, const OptionalTensor& extra_ids, c10::string_view similarity,
                         c10::string_view sums) {
  TORCH_CHECK_VALUE(unit_queries.dim() == 2 && items.dim() == 2, "unit_queries must be [B, D] and items [I, D], got ",
                    unit_queries.sizes(), " and ", items.sizes());
  const int64_t rows = unit_queries.size(0);
  check_shape(items, {items.size(0), unit_queries.size(1)}, "items", unit_queries);
  const Ids ids = check_ids(items, rows, pos_ids, neg_ids, extra_ids);
  const bool shared = ids.shared.defined();
  const int64_t m = ids.extra.size(1);
  check_shape(coefficients, {rows, shared ? 1 + m : 1 + m + ids.n}, "coefficients", items);

  ItemGradientCall call;
  check_type(unit_queries, compute_type(items), "unit_queries");
  call.sources = factor ? scale_rows({unit_queries}, *factor, compute_type(items))[0] : unit_queries.contiguous();
  if (shared) {
    check_shape(shared_coefficients, {rows, ids.n}, "shared_coefficients", items);
    check_type(shared_coefficients, kept_options(items).dtype().toScalarType(), "shared_coefficients");
    call.shared_coefficients = shared_coefficients.contiguous();
  }
  call.coefficients = coefficients.contiguous();
  if (!on_cuda(items) && !shared) {
    check_shape(pair_keys, {rows, 1 + m + ids.n}, "pair_keys", items);
    check_type(pair_keys, at::kShort, "pair_keys");
    check_shape(pair_ends, cw_cpu::pair_ends(rows, 1 + m + ids.n, items.size(0), items).sizes(), "pair_ends", items);
    check_type(pair_ends, at::kInt, "pair_ends");
  }
  call.pair_keys = pair_keys.contiguous();
  call.pair_ends = pair_ends.contiguous();
  call.items = items.contiguous();
  call.pos_ids = ids.pos;
  call.extra_ids = ids.extra;
  call.neg_ids = ids.neg;
  call.shared_ids = ids.shared;
  const auto [scale, normalized] = similarity_of(similarity);
  call.scale = scale;
  call.normalized = normalized;
  call.sums = ItemSums(index_of(sums, {"chosen", "atomic", "sorted"}, "sums"));
  TORCH_CHECK_VALUE(call.sums == ItemSums::chosen || on_cuda(items), "sums must be chosen on ", items.device());
  if (rows == 0) return at::zeros_like(call.items);
  call.gradient = empty_large(call.items.sizes(), call.items.options());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  run_item_gradient(call);
  return call.gradient;
}

}  // namespace

TORCH_LIBRARY(cw_ext, m) {
  // Level 1: pos [B], neg [B, N], extra [B, M], log_q [B, N]; outputs without gradients wanted are empty.
  m.def("scores_forward(Tensor pos, Tensor neg, Tensor? extra, Tensor? log_q, " CW_LOSS_SCHEMA
        ", str reduction, bool with_gradients, bool with_log_q_gradient) -> (Tensor loss, Tensor live, Tensor rescale, "
        "Tensor d_pos, Tensor d_neg, Tensor d_extra, Tensor d_log_q, Tensor d_prior, Tensor d_threshold)");
  // Level 2: queries [B, D], items [I, D], pos_ids [B], neg_ids [B, N] or [N], extra_ids [B, M], log_q [B, N].
  m.def("embeddings_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, "
        "Tensor? log_q, " CW_EXCLUSION_SCHEMA ", " CW_LOSS_SCHEMA
        ", str similarity, str reduction, bool with_gradients, bool with_log_q_gradient) -> (Tensor loss, "
        "Tensor live, Tensor rescale, Tensor d_queries, Tensor unit_queries, Tensor coefficients, "
        "Tensor shared_coefficients, Tensor pair_keys, Tensor pair_ends, Tensor d_log_q, Tensor d_prior, "
        "Tensor d_threshold)");
  // factor [B] or one number: the gradient of each row's loss, unless unit_queries have been multiplied by it. sums:
  // "chosen", or on CUDA "atomic" or "sorted", to measure which to choose.
  m.def("item_gradient(Tensor unit_queries, Tensor? factor, Tensor coefficients, Tensor shared_coefficients, "
        "Tensor pair_keys, Tensor pair_ends, Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, "
        "str similarity, str sums=\"chosen\") -> Tensor");
  // gradients [B, ...] each, factor [B] or one number.
  m.def("scale_rows(Tensor[] gradients, Tensor factor, ScalarType dtype) -> Tensor[]");
  m.def("scale_rows_(Tensor(a!)[] gradients, Tensor factor) -> ()");
}

TORCH_LIBRARY_IMPL(cw_ext, CPU, m) {
  m.impl("scores_forward", &scores_forward);
  m.impl("embeddings_forward", &embeddings_forward);
  m.impl("item_gradient", &item_gradient);
  m.impl("scale_rows", &scale_rows);
  m.impl("scale_rows_", &scale_rows_);
}

#ifdef CW_WITH_CUDA
TORCH_LIBRARY_IMPL(cw_ext, CUDA, m) {
  m.impl("scores_forward", &scores_forward);
  m.impl("embeddings_forward", &embeddings_forward);
  m.impl("item_gradient", &item_gradient);
  m.impl("scale_rows", &scale_rows);
  m.impl("scale_rows_", &scale_rows_);
}
#endif

}  // namespace cw_ext
