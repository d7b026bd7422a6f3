#include "sparse_gradient.h"

#include <tuple>

#include "../draw_arguments.h"
#include "../item_gradient_calls.h"

namespace cw_ext {

namespace {

using Result = std::tuple<Tensor, Tensor>;

// What a batch without rows names: nothing.
Result no_rows(const Tensor& items) {
  return {empty({0}, options_of(items, kLong)), empty({0, items.size(1)}, options_of(items))};
}

Result sparse_item_gradient(const Tensor& unit_queries, const OptionalTensor& factor, const Tensor& coefficients,
                            const Tensor& shared_coefficients, const Tensor& items, const Tensor& pos_ids,
                            const Tensor& neg_ids, const OptionalTensor& extra_ids, const Text& similarity) {
  const ItemGradientCall call = item_gradient_call(unit_queries, factor, coefficients, shared_coefficients, items, pos_ids,
                                                   neg_ids, extra_ids, similarity, false);
  if (call.sources.size(0) == 0) return no_rows(items);
  const auto [ids, values] = cw_cpu::sparse_item_gradient(call);
  return {ids, values};
}

Result sparse_sampled_item_gradient(const Tensor& unit_queries, const OptionalTensor& factor,
                                    const OptionalTensor& coefficients, const Tensor& queries, const Tensor& items,
                                    const Tensor& pos_ids, const OptionalTensor& extra_ids, CW_DRAWS_PARAMETERS,
                                    CW_LOSS_PARAMETERS const Text& similarity, const Text& reduction) {
  constexpr bool with_curve_gradient = false;
  const SampledItemGradientCall call = sampled_item_gradient_call(
      unit_queries, factor, coefficients, queries, items, pos_ids, extra_ids, similarity, false,
      [&](int64_t rows) { return CW_DRAWS(items.size(0), rows, queries); },
      [&](int64_t rows) { return CW_LOSS(rows, queries); });
  if (queries.size(0) == 0) return no_rows(items);
  const auto [ids, values] = cw_cpu::sparse_sampled_item_gradient(call);
  return {ids, values};
}

}  // namespace

CW_OPS(
  // As item_gradient and sampled_item_gradient, of the items that the batch names: ids [U] int64, sorted and distinct, and
  // values [U, D]. The coefficients are in the order of the pairs.
  m.def("sparse_item_gradient(Tensor unit_queries, Tensor? factor, Tensor coefficients, Tensor shared_coefficients, "
        "Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, str similarity) -> (Tensor ids, Tensor values)");
  m.def("sparse_sampled_item_gradient(Tensor unit_queries, Tensor? factor, Tensor? coefficients, Tensor queries, "
        "Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_DRAWS_SCHEMA ", " CW_LOSS_SCHEMA
        "str similarity, str reduction) -> (Tensor ids, Tensor values)");)

CW_KERNELS(m.impl("sparse_item_gradient", TORCH_BOX(&sparse_item_gradient));
           m.impl("sparse_sampled_item_gradient", TORCH_BOX(&sparse_sampled_item_gradient));)

}  // namespace cw_ext
