// Backward passes: rows' gradients times those of their losses, and the gradient of the item table.
#include <vector>

#include "item_gradient_calls.h"

namespace cw_ext {

namespace {

// The rows' gradients times the gradients of their losses, in the dtype of the inputs.
std::vector<Tensor> scale_rows(const std::vector<Tensor>& gradients, const Tensor& factor, ScalarType dtype) {
  std::vector<Tensor> results;
  results.reserve(gradients.size());
  for (const Tensor& x : gradients) {
    check_factor(factor, x);
    results.push_back(empty_large(x.sizes(), options_of(x, dtype)));
    const Tensor& out = results.back();
    CW_CHECK_TYPE(x.scalar_type() == compute_type(out) || (kCuda && x.scalar_type() == dtype),
                  "gradients must have dtype ", compute_type(out), ", got ", x.scalar_type());
    if (x.numel() > 0) backend::scale_rows(as_contiguous(x), as_contiguous(factor), out);
  }
  return results;
}

// The same in place. Where the factor is 1, as for a mean over rows that are all live and whose own gradient is 1, nothing is
// touched: from scores that saves half of a step's memory traffic.
void scale_rows_(const std::vector<Tensor>& gradients, const Tensor& factor, const OptionalTensor& rescale) {
  if (gradients.empty()) return;
  check_factor(factor, gradients[0]);
  const Tensor both = rescale ? times_rescale(factor, *rescale) : as_contiguous(factor);
  for (const Tensor& x : gradients) {
    check_factor(both, x);
    CW_CHECK_VALUE(x.is_contiguous(), "gradients must be contiguous");
    if (x.numel() > 0) backend::scale_in_place(x, both);
  }
}

Tensor item_gradient(const Tensor& unit_queries, const OptionalTensor& factor, const Tensor& coefficients,
                         const Tensor& shared_coefficients, const Tensor& pair_keys,
                         const Tensor& pair_ends, const Tensor& items, const Tensor& pos_ids,
                         const Tensor& neg_ids, const OptionalTensor& extra_ids, const Text& similarity,
                         const Text& sums) {
  const bool dense = !kCuda && neg_ids.dim() == 2 && neg_ids.size(0) > 0 && pair_keys.dim() == 2 && pair_keys.size(0) == 0;
  ItemGradientCall call = item_gradient_call(unit_queries, factor, coefficients, shared_coefficients, items, pos_ids,
                                             neg_ids, extra_ids, similarity, dense);
  const int64_t rows = call.sources.size(0), width = call.coefficients.size(1);
  if (!kCuda && !call.shared_ids.defined() && !dense) {
    check_shape(pair_keys, {rows, width}, "pair_keys", items);
    check_type(pair_keys, kShort, "pair_keys");
    check_shape(pair_ends, backend::pair_ends(rows, width, items.size(0), items).sizes(), "pair_ends", items);
    check_type(pair_ends, kInt, "pair_ends");
  }
  call.pair_keys = as_contiguous(pair_keys);
  call.pair_ends = as_contiguous(pair_ends);
  call.sums = item_sums_of(sums);
  if (rows == 0) return zeros(call.items.sizes(), options_of(call.items));
  call.gradient = empty_large(call.items.sizes(), options_of(call.items));
  backend::item_gradient(call);
  return call.gradient;
}

}  // namespace

CW_OPS(
  // factor [B] or a single number: the gradient of each row's loss, unless unit_queries are already multiplied by it. sums:
  // how CUDA sums, "chosen", "atomic" or "sorted"; the CPU has one way.
  m.def("item_gradient(Tensor unit_queries, Tensor? factor, Tensor coefficients, Tensor shared_coefficients, "
        "Tensor pair_keys, Tensor pair_ends, Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, "
        "str similarity, str sums=\"chosen\") -> Tensor");
  // gradients [B, ...] each, factor [B] or a single number.
  m.def("scale_rows(Tensor[] gradients, Tensor factor, ScalarType dtype) -> Tensor[]");
  // In place; a mean's own rescale [] multiplies the factor.
  m.def("scale_rows_(Tensor(a!)[] gradients, Tensor factor, Tensor? rescale=None) -> ()");)

CW_KERNELS(m.impl("item_gradient", TORCH_BOX(&item_gradient)); m.impl("scale_rows", TORCH_BOX(&scale_rows));
                m.impl("scale_rows_", TORCH_BOX(&scale_rows_));)

}  // namespace cw_ext
