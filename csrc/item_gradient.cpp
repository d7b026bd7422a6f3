// Backward passes: rows' gradients times those of their losses, and the gradient of the item table.
#include <torch/library.h>

#include <vector>

#include "id_arguments.h"

namespace cw_ext {

namespace {

// The rows' gradients times the gradients of their losses, in the dtype of the inputs.
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

// The same in place. Where the factor is 1, as for a mean over rows that are all live and whose own gradient is 1, nothing is
// touched: at level 1 that saves half of a step's memory traffic.
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
  const PositiveIds positives = check_positive_ids(items, rows, pos_ids, extra_ids);
  const NegativeIds negatives = check_negative_ids(items, rows, neg_ids);
  const bool shared = negatives.shared.defined();
  const int64_t n = negatives.n, m = positives.extra.size(1);
  check_shape(coefficients, {rows, shared ? 1 + m : 1 + m + n}, "coefficients", items);

  ItemGradientCall call;
  check_type(unit_queries, compute_type(items), "unit_queries");
  call.sources = factor ? scale_rows({unit_queries}, *factor, compute_type(items))[0] : unit_queries.contiguous();
  if (shared) {
    check_shape(shared_coefficients, {rows, n}, "shared_coefficients", items);
    check_type(shared_coefficients, kept_options(items).dtype().toScalarType(), "shared_coefficients");
    call.shared_coefficients = shared_coefficients.contiguous();
  }
  call.coefficients = coefficients.contiguous();
  if (!on_cuda(items) && !shared) {
    check_shape(pair_keys, {rows, 1 + m + n}, "pair_keys", items);
    check_type(pair_keys, at::kShort, "pair_keys");
    check_shape(pair_ends, cw_cpu::pair_ends(rows, 1 + m + n, items.size(0), items).sizes(), "pair_ends", items);
    check_type(pair_ends, at::kInt, "pair_ends");
  }
  call.pair_keys = pair_keys.contiguous();
  call.pair_ends = pair_ends.contiguous();
  call.items = items.contiguous();
  call.pos_ids = positives.pos;
  call.extra_ids = positives.extra;
  call.neg_ids = negatives.own;
  call.shared_ids = negatives.shared;
  const auto [scale, normalized] = similarity_of(similarity);
  call.scale = scale;
  call.normalized = normalized;
  call.sums = ItemSums(index_of(sums, {"chosen", "atomic", "sorted"}, "sums"));
  TORCH_CHECK_VALUE(call.sums == ItemSums::chosen || on_cuda(items), "sums must be chosen on ", items.device());
  if (rows == 0) return at::zeros_like(call.items);
  call.gradient = empty_large(call.items.sizes(), call.items.options());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  CW_RUN(items, item_gradient(call));
  return call.gradient;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(cw_ext, m) {
  // factor [B] or a single number: the gradient of each row's loss, unless unit_queries are already multiplied by it. sums:
  // "chosen" or, on CUDA, "atomic" or "sorted", so that both can be measured.
  m.def("item_gradient(Tensor unit_queries, Tensor? factor, Tensor coefficients, Tensor shared_coefficients, "
        "Tensor pair_keys, Tensor pair_ends, Tensor items, Tensor pos_ids, Tensor neg_ids, Tensor? extra_ids, "
        "str similarity, str sums=\"chosen\") -> Tensor");
  // gradients [B, ...] each, factor [B] or a single number.
  m.def("scale_rows(Tensor[] gradients, Tensor factor, ScalarType dtype) -> Tensor[]");
  m.def("scale_rows_(Tensor(a!)[] gradients, Tensor factor) -> ()");
}

CW_LIBRARY_IMPL(m.impl("item_gradient", &item_gradient); m.impl("scale_rows", &scale_rows);
                m.impl("scale_rows_", &scale_rows_);)

}  // namespace cw_ext
