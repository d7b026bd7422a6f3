// Sampled: negatives that are drawn inside the op, so that their ids never exist as a tensor.
#include <tuple>

#include "dense_rule.h"
#include "draw_arguments.h"
#include "item_gradient_calls.h"

namespace cw_ext {

namespace {

using SampledResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                 Tensor, Tensor>;

SampledResult sampled_forward(const Tensor& queries, const Tensor& items, const Tensor& pos_ids,
                              const OptionalTensor& extra_ids, CW_DRAWS_PARAMETERS, CW_LOSS_PARAMETERS
                              const Text& similarity, const Text& reduction, bool with_gradients,
                              bool keep_coefficients, bool with_curve_gradient, bool sparse) {
  check_tables(queries, items);
  check_items(items);
  const int64_t rows = queries.size(0);
  const PositiveIds positives = check_positive_ids(queries, rows, pos_ids, extra_ids);
  const auto options = options_of(queries, compute_type(queries));
  SampledCall call;
  call.draws = checked_draws(CW_DRAWS(items.size(0), rows, queries), positives, queries);
  fill_query_call(call.rows, queries, items, positives, CW_LOSS(rows, queries), similarity, with_gradients);
  call.rows.dense = !sparse && is_dense(rows, num_negatives, items.size(0), false, log_weights || curve, queries);
  if (with_gradients && keep_coefficients) {
    const int64_t width = call.rows.dense ? items.size(0) : 1 + positives.extra.size(1) + num_negatives;
    call.rows.coefficients = empty_large({rows, width}, options);
  }
  if (rows > 0) backend::sampled(call);
  const auto [loss, rescale] = reduced(call.rows.out, reduction);
  return {loss,
          call.rows.out.live,
          or_empty(call.rows.out.above, options.with(kLong)),
          rescale,
          or_empty(call.rows.d_queries, options),
          or_empty(call.rows.unit_queries, options),
          or_empty(call.rows.coefficients, options),
          call.rows.out.d_values,
          or_empty(call.rows.out.d_curve, options)};
}

Tensor sampled_item_gradient(const Tensor& unit_queries, const OptionalTensor& factor,
                                 const OptionalTensor& coefficients, const Tensor& queries, const Tensor& items,
                                 const Tensor& pos_ids, const OptionalTensor& extra_ids, CW_DRAWS_PARAMETERS,
                                 CW_LOSS_PARAMETERS const Text& similarity, const Text& reduction,
                             const Text& sums) {
  constexpr bool with_curve_gradient = false;
  SampledItemGradientCall call = sampled_item_gradient_call(
      unit_queries, factor, coefficients, queries, items, pos_ids, extra_ids, similarity,
      is_dense(queries.size(0), num_negatives, items.size(0), false, log_weights || curve, queries),
      [&](int64_t rows) { return CW_DRAWS(items.size(0), rows, queries); },
      [&](int64_t rows) { return CW_LOSS(rows, queries); });
  ItemGradientCall& gradient = call.gradient;
  gradient.sums = item_sums_of(sums);
  const int64_t rows = queries.size(0);
  if (rows == 0) return zeros(gradient.items.sizes(), options_of(gradient.items));
  gradient.gradient = empty_large(gradient.items.sizes(), options_of(gradient.items));
  backend::sampled_item_gradient(call);
  return gradient.gradient;
}

}  // namespace

CW_OPS(
  // queries [B, D], items [I, D], pos_ids [B], extra_ids [B, M]. sparse: the coefficients are for
  // sparse_sampled_item_gradient, and so never dense.
  m.def("sampled_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_DRAWS_SCHEMA ", "
        CW_LOSS_SCHEMA "str similarity, str reduction, bool with_gradients, bool keep_coefficients, "
        "bool with_curve_gradient, bool sparse=False) -> (Tensor loss, Tensor live, Tensor above, Tensor rescale, Tensor d_queries, "
        "Tensor unit_queries, Tensor coefficients, Tensor d_row_values, Tensor d_curve)");
  // coefficients: from sampled_forward, or None to compute them again.
  m.def("sampled_item_gradient(Tensor unit_queries, Tensor? factor, Tensor? coefficients, Tensor queries, Tensor items, "
        "Tensor pos_ids, Tensor? extra_ids, " CW_DRAWS_SCHEMA ", " CW_LOSS_SCHEMA "str similarity, str reduction, "
        "str sums) -> Tensor");)

CW_KERNELS(m.impl("sampled_forward", TORCH_BOX(&sampled_forward));
                m.impl("sampled_item_gradient", TORCH_BOX(&sampled_item_gradient));)

}  // namespace cw_ext
