// The calls of the ops that compute the gradient of the item table, dense or sparse, from their checked arguments.
#pragma once

#include "backward.h"
#include "id_arguments.h"
#include "query_arguments.h"

namespace cw_ext {

// Of embeddings, without its pairs' order and how CUDA sums. `dense`: the coefficients are those of all items, [B, I].
inline ItemGradientCall item_gradient_call(const Tensor& unit_queries, const OptionalTensor& factor,
                                           const Tensor& coefficients, const Tensor& shared_coefficients,
                                           const Tensor& items, const Tensor& pos_ids, const Tensor& neg_ids,
                                           const OptionalTensor& extra_ids, std::string_view similarity, bool dense) {
  CW_CHECK_VALUE(unit_queries.dim() == 2 && items.dim() == 2, "unit_queries must be [B, D] and items [I, D], got ",
                 unit_queries.sizes(), " and ", items.sizes());
  const int64_t rows = unit_queries.size(0);
  check_shape(items, {items.size(0), unit_queries.size(1)}, "items", unit_queries);
  const PositiveIds positives = check_positive_ids(items, rows, pos_ids, extra_ids);
  const NegativeIds negatives = check_negative_ids(items, rows, neg_ids);
  const bool shared = negatives.shared.defined();
  const int64_t n = negatives.n, m = positives.extra.size(1);
  check_shape(coefficients, {rows, dense ? items.size(0) : shared ? 1 + m : 1 + m + n}, "coefficients", items);
  check_type(coefficients, compute_type(items), "coefficients");

  ItemGradientCall call;
  call.dense = dense;
  check_type(unit_queries, compute_type(items), "unit_queries");
  call.sources = times_factor(unit_queries, factor);
  if (shared) {
    check_shape(shared_coefficients, {rows, n}, "shared_coefficients", items);
    check_type(shared_coefficients, kept_options(items).dtype, "shared_coefficients");
    call.shared_coefficients = as_contiguous(shared_coefficients);
  }
  call.coefficients = as_contiguous(coefficients);
  call.items = as_contiguous(items);
  call.pos_ids = positives.pos;
  call.extra_ids = positives.extra;
  call.neg_ids = negatives.own;
  call.shared_ids = negatives.shared;
  const auto [scale, normalized] = similarity_of(similarity);
  call.scale = scale;
  call.normalized = normalized;
  return call;
}

inline Draws checked_draws(Draws draws, const PositiveIds& positives, const Tensor& queries) {
  draws.pos_ids = positives.pos;
  if (draws.log_weights.defined()) check_type(draws.log_weights, compute_type(queries), "log_weights");
  return draws;
}

// Of sampled: `draws` and `loss` make the call's from the checked queries.
template <typename MakeDraws, typename MakeLoss>
SampledItemGradientCall sampled_item_gradient_call(const Tensor& unit_queries, const OptionalTensor& factor,
                                                   const OptionalTensor& coefficients, const Tensor& queries,
                                                   const Tensor& items, const Tensor& pos_ids,
                                                   const OptionalTensor& extra_ids, std::string_view similarity,
                                                   bool dense, const MakeDraws& draws, const MakeLoss& loss) {
  check_tables(queries, items);
  check_items(items);
  const int64_t rows = queries.size(0), dim = queries.size(1);
  const PositiveIds positives = check_positive_ids(queries, rows, pos_ids, extra_ids);
  check_shape(unit_queries, {rows, dim}, "unit_queries", queries);
  check_type(unit_queries, compute_type(queries), "unit_queries");
  SampledItemGradientCall call;
  call.draws = checked_draws(draws(rows), positives, queries);
  ItemGradientCall& gradient = call.gradient;
  gradient.dense = dense;
  gradient.sources = times_factor(unit_queries, factor);
  gradient.items = as_contiguous(items);
  gradient.pos_ids = positives.pos;
  gradient.extra_ids = positives.extra;
  gradient.scale = similarity_of(similarity).scale;
  gradient.normalized = similarity_of(similarity).normalized;
  if (coefficients) {
    const int64_t width = dense ? items.size(0) : 1 + positives.extra.size(1) + call.draws.n;
    check_shape(*coefficients, {rows, width}, "coefficients", queries);
    check_type(*coefficients, compute_type(queries), "coefficients");
    gradient.coefficients = as_contiguous(*coefficients);
  } else {
    fill_query_call(call.rows, queries, items, positives, loss(rows), similarity, false);
    call.rows.with_gradients = true;  // of the scores alone
    call.rows.out.d_curve = MaybeTensor();
    call.rows.out.above = MaybeTensor();
  }
  return call;
}

}  // namespace cw_ext
