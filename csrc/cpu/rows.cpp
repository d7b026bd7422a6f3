// Sums over rows, and rows times numbers.
#include <algorithm>
#include <vector>

#include "dispatch.h"

namespace cw_cpu {

void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const Tensor& loss, const Tensor& rescale) {
  const auto reduce = [&](auto element) {
    using T = decltype(element);
    const T* const losses = pointer<const T>(rows.loss);
    const bool* const live = pointer<const bool>(rows.live);
    const int64_t all = rows.loss.numel();
    double total = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < all; ++b) {
      total += double(losses[b]);
      count += live[b];
    }
    count = std::max<int64_t>(1, count);
    *pointer<T>(loss) = T(mean ? total / double(count) : total);
    if (mean) *pointer<T>(rescale) = T(double(all) / double(count));
  };
  rows.loss.scalar_type() == kDouble ? reduce(double{}) : reduce(float{});
}

namespace {

template <typename Out>
void scale_to(const Tensor& x, const Tensor& factor, const Tensor& out) {
  using T = typename Compute<Out>::type;
  const int64_t rows = x.dim() > 0 ? x.size(0) : 1, width = x.numel() / rows;
  const T* factors = pointer<const T>(factor);
  const std::vector<T> same(factor.dim() > 0 ? 0 : size_t(rows), *factors);
  if (factor.dim() == 0) factors = same.data();
  const ScaleRowsTask<Out> task{pointer<const T>(x), factors, width, pointer<Out>(out)};
  parallel_for(0, rows, grain(width, 1), [&](int64_t begin, int64_t end) {
    CW_WITH_ISA(scale_rows<Out>(task, begin, end));
  });
}

}  // namespace

void scale_rows(const Tensor& x, const Tensor& factor, const Tensor& out) {
  with_type(out.scalar_type(), [&](auto element) { scale_to<decltype(element)>(x, factor, out); });
}

void scale_in_place(const Tensor& x, const Tensor& factor) {
  const auto scale = [&](auto element) {
    using T = decltype(element);
    if (factor.dim() > 0 || *pointer<const T>(factor) != T(1)) scale_to<T>(x, factor, x);
  };
  switch (x.scalar_type()) {
    case kFloat:
      return scale(float{});
    case kDouble:
      return scale(double{});
    default:
      CW_CHECK_TYPE(false, "gradients are kept in fp64 or fp32, got ", x.scalar_type());
  }
}

}  // namespace cw_cpu
