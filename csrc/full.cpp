// The whole catalogue as negatives.
#include <tuple>

#include "backward.h"
#include "query_arguments.h"

namespace cw_ext {

namespace {

using FullResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// All items as negatives, some rows at a time. The gradients are those of the rows' losses times `factor`.
FullResult full_forward(const Tensor& queries, const Tensor& items, const Tensor& pos_ids,
                        const OptionalTensor& extra_ids, CW_HISTORY_PARAMETERS, CW_LOSS_PARAMETERS
                        const Text& similarity, const Text& reduction, bool with_gradients,
                        const OptionalTensor& factor, bool with_curve_gradient, const Text& sums, bool bf16_products) {
  check_tables(queries, items);
  check_items(items);
  const int64_t rows = queries.size(0), dim = queries.size(1);
  const PositiveIds positives = check_positive_ids(queries, rows, pos_ids, extra_ids);
  const auto options = options_of(queries, compute_type(queries));
  SharedNegativesCall call;
  fill_query_call(call, queries, items, positives, CW_LOSS(rows, queries), similarity, with_gradients);
  call.bf16_products = bf16_products;
  auto [ids, columns] = backend::catalogue(items.size(0), queries.device());
  call.neg_ids = ids;
  call.exclusion = columns;
  call.exclusion.history = history(query_ids, starts, known, rows, queries);
  Tensor d_items;
  if (with_gradients) {
    call.coefficients = empty({rows, 1 + positives.extra.size(1)}, options);
    call.negative_sums = zeros({items.size(0), dim}, options);
    if (factor) {
      check_shape(*factor, {rows}, "factor", queries);
      check_type(*factor, compute_type(queries), "factor");
      call.row_factor = as_contiguous(*factor);
    }
    d_items = empty_large(call.items.sizes(), options_of(call.items));
  }
  if (rows > 0) {
    check_range(positives.pos, items.size(0), "pos_ids");
    check_range(positives.extra, items.size(0), "extra_pos_ids");
    backend::shared_negatives(call);
    if (with_gradients) {
      ItemGradientCall gradient;
      if (factor) backend::scale_in_place(call.d_queries, call.row_factor);
      gradient.sources = times_factor(call.unit_queries, factor);
      gradient.coefficients = call.coefficients;
      gradient.initial = call.negative_sums;
      gradient.items = call.items;
      gradient.pos_ids = positives.pos;
      gradient.extra_ids = positives.extra;
      gradient.scale = call.scale;
      gradient.normalized = call.normalized;
      gradient.sums = item_sums_of(sums);
      gradient.gradient = d_items;
      backend::item_gradient(gradient);
    }
  } else if (with_gradients) {
    CW_TORCH(aoti_torch_zero_(d_items.get()));
  }
  const auto [loss, rescale] = reduced(call.out, reduction);
  return {loss,
          call.out.live,
          or_empty(call.out.above, options.with(kLong)),
          rescale,
          or_empty(call.d_queries, options),
          or_empty(d_items, options_of(items)),
          call.out.d_values,
          or_empty(call.out.d_curve, options)};
}

}  // namespace

CW_OPS(
  m.def("full_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_HISTORY_SCHEMA ", "
        CW_LOSS_SCHEMA "str similarity, str reduction, bool with_gradients, Tensor? factor, "
        "bool with_curve_gradient, str sums, bool bf16_products) -> (Tensor loss, Tensor live, Tensor above, "
        "Tensor rescale, Tensor d_queries, Tensor d_items, Tensor d_row_values, Tensor d_curve)");)

CW_KERNELS(m.impl("full_forward", TORCH_BOX(&full_forward));)

}  // namespace cw_ext
