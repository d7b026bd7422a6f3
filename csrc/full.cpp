// The whole catalogue as negatives.
#include <torch/library.h>

#include <tuple>

#include "query_arguments.h"

namespace cw_ext {

namespace {

using FullResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// All items as negatives, some rows at a time. The gradients are those of the rows' losses times `factor`.
FullResult full_forward(const at::Tensor& queries, const at::Tensor& items, const at::Tensor& pos_ids,
                        const OptionalTensor& extra_ids, CW_HISTORY_PARAMETERS, CW_LOSS_PARAMETERS
                        c10::string_view similarity, c10::string_view reduction, bool with_gradients,
                        const OptionalTensor& factor, bool with_curve_gradient) {
  check_tables(queries, items);
  check_items(items);
  const int64_t rows = queries.size(0), dim = queries.size(1);
  const PositiveIds positives = check_positive_ids(queries, rows, pos_ids, extra_ids);
  const auto options = queries.options().dtype(compute_type(queries));
  SharedNegativesCall call;
  fill_query_call(call, queries, items, positives, CW_LOSS(rows, queries), similarity, with_gradients);
  call.neg_ids = at::arange(items.size(0), positives.pos.options());
  call.exclusion = {call.neg_ids.to(at::kInt), at::full({items.size(0)}, -1, call.neg_ids.options().dtype(at::kInt)),
                    history(query_ids, starts, known, rows, queries)};
  at::Tensor d_items;
  if (with_gradients) {
    call.coefficients = empty({rows, 1 + positives.extra.size(1)}, options);
    call.negative_sums = at::zeros({items.size(0), dim}, options);
    if (factor) {
      check_shape(*factor, {rows}, "factor", queries);
      check_type(*factor, compute_type(queries), "factor");
      call.row_factor = factor->contiguous();
    }
    d_items = empty_large(call.items.sizes(), call.items.options());
  }
  if (rows > 0) {
    check_range(positives.pos, items.size(0), "pos_ids");
    check_range(positives.extra, items.size(0), "extra_pos_ids");
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    run_shared_negatives(call);
    if (with_gradients) {
      if (factor) call.d_queries.mul_(factor->unsqueeze(-1));
      ItemGradientCall gradient;
      gradient.sources = factor ? call.unit_queries * factor->unsqueeze(-1) : call.unit_queries;
      gradient.coefficients = call.coefficients;
      gradient.initial = call.negative_sums;
      gradient.items = call.items;
      gradient.pos_ids = positives.pos;
      gradient.extra_ids = positives.extra;
      gradient.scale = call.scale;
      gradient.normalized = call.normalized;
      gradient.sums = ItemSums::chosen;
      gradient.gradient = d_items;
      CW_RUN(items, item_gradient(gradient));
    }
  } else if (with_gradients) {
    d_items.zero_();
  }
  const auto [loss, rescale] = reduced(call.out, reduction);
  return {loss,
          call.out.live,
          or_empty(call.out.above, options.dtype(at::kLong)),
          rescale,
          or_empty(call.d_queries, options),
          or_empty(d_items, items.options()),
          call.out.d_values,
          or_empty(call.out.d_curve, options)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(cw_ext, m) {
  m.def("full_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_HISTORY_SCHEMA ", "
        CW_LOSS_SCHEMA "str similarity, str reduction, bool with_gradients, Tensor? factor, "
        "bool with_curve_gradient) -> (Tensor loss, Tensor live, Tensor above, Tensor rescale, Tensor d_queries, "
        "Tensor d_items, Tensor d_row_values, Tensor d_curve)");
}

CW_LIBRARY_IMPL(m.impl("full_forward", &full_forward);)

}  // namespace cw_ext
