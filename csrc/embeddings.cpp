// From embeddings: the loss from embeddings and ids, where each row has its own negatives or all rows share them.
#include <tuple>

#include "dense_rule.h"
#include "query_arguments.h"

namespace cw_ext {

namespace {

using EmbeddingsResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

EmbeddingsResult embeddings_forward(const Tensor& queries, const Tensor& items, const Tensor& pos_ids,
                                    const Tensor& neg_ids, const OptionalTensor& extra_ids,
                                    const OptionalTensor& log_q, CW_EXCLUSION_PARAMETERS, CW_LOSS_PARAMETERS
                                    const Text& similarity, const Text& reduction, bool with_gradients,
                                    bool with_log_q_gradient, bool with_curve_gradient, bool sorted_pairs) {
  check_tables(queries, items);
  const int64_t rows = queries.size(0);
  const PositiveIds positives = check_positive_ids(queries, rows, pos_ids, extra_ids);
  const NegativeIds negatives = check_negative_ids(queries, rows, neg_ids);
  const int64_t n = negatives.n, m = positives.extra.size(1);
  const auto options = options_of(queries, compute_type(queries));

  const auto fill = [&](auto& call, const Tensor& ids, int64_t width) {
    fill_query_call(call, queries, items, positives, CW_LOSS(rows, queries), similarity, with_gradients);
    call.neg_ids = ids;
    call.log_q = log_weights(log_q, rows, n, queries);
    if (with_log_q_gradient && log_q) call.out.d_log_q = empty({rows, n}, options);
    if (with_gradients) call.coefficients = empty_large({rows, width}, options);
  };
  const auto results = [&](const auto& call, const Tensor& shared_coefficients, const Tensor& pair_keys,
                           const Tensor& pair_ends) -> EmbeddingsResult {
    const auto [loss, rescale] = reduced(call.out, reduction);
    return {loss,
            call.out.live,
            or_empty(call.out.above, options.with(kLong)),
            rescale,
            or_empty(call.d_queries, options),
            or_empty(call.unit_queries, options),
            or_empty(call.coefficients, options),
            or_empty(shared_coefficients, options),
            or_empty(pair_keys, options.with(kShort)),
            or_empty(pair_ends, options.with(kInt)),
            or_empty(call.out.d_log_q, options),
            call.out.d_values,
            or_empty(call.out.d_curve, options)};
  };

  if (negatives.shared.defined()) {
    SharedNegativesCall call;
    fill(call, negatives.shared, 1 + m);
    call.bf16_products = false;
    if (with_gradients) call.shared_coefficients = empty_large({rows, n}, kept_options(queries));
    if (rows > 0) {
      check_range(positives.pos, items.size(0), "pos_ids");
      check_range(negatives.shared, items.size(0), "neg_ids");
      check_range(positives.extra, items.size(0), "extra_pos_ids");
      if (exclude) {
        call.exclusion = backend::columns_by_item(negatives.shared, items.size(0));
        call.exclusion.history = history(query_ids, starts, known, rows, queries);
      }
        backend::shared_negatives(call);
    }
    return results(call, call.shared_coefficients, MaybeTensor(), MaybeTensor());
  }
  CW_CHECK_VALUE(!exclude, "exclude is for negatives that all rows share");
  EmbeddingsCall call;
  call.dense = sorted_pairs && !(with_log_q_gradient && log_q) &&
               is_dense(rows, n, items.size(0), log_q.has_value(), curve.has_value(), queries);
  fill(call, negatives.own, call.dense ? items.size(0) : 1 + m + n);
  if (with_gradients && sorted_pairs) {
    const int64_t sorted_rows = call.dense ? 0 : rows;
    call.pair_keys = backend::pair_keys(sorted_rows, 1 + m + n, queries);
    call.pair_ends = backend::pair_ends(sorted_rows, 1 + m + n, items.size(0), queries);
  }
  if (rows > 0) {
    check_items(items);
    backend::embeddings(call);
  }
  return results(call, MaybeTensor(), call.pair_keys, call.pair_ends);
}

}  // namespace

CW_OPS(
  // queries [B, D], items [I, D], pos_ids [B], neg_ids [B, N] or [N], extra_ids [B, M], log_q [B, N]. Results that are not
  // wanted, or do not exist for this kind of negatives or device, are empty: pair_keys and pair_ends are the CPU's order of
  // the coefficients (of no rows where these are dense, [B, I]), which item_gradient needs, and sparse_item_gradient none, with
  // coefficients in the order of the pairs; shared_coefficients [B, N] belong to shared negatives [N].
  m.def("embeddings_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, "
        "Tensor? log_q, " CW_EXCLUSION_SCHEMA ", " CW_LOSS_SCHEMA
        "str similarity, str reduction, bool with_gradients, bool with_log_q_gradient, bool with_curve_gradient, "
        "bool sorted_pairs=True) -> ("
        "Tensor loss, Tensor live, Tensor above, Tensor rescale, Tensor d_queries, Tensor unit_queries, Tensor coefficients, "
        "Tensor shared_coefficients, Tensor pair_keys, Tensor pair_ends, Tensor d_log_q, Tensor d_row_values, "
        "Tensor d_curve)");)

CW_KERNELS(m.impl("embeddings_forward", TORCH_BOX(&embeddings_forward));)

}  // namespace cw_ext
