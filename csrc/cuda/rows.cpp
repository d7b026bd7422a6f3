// Sums over rows, rows times numbers, and sums of tensors: from tensors to pointers, as in scores.cpp.
#include "rows.h"

#include <algorithm>
#include <type_traits>

#include "tensors.h"

namespace cw_cuda {

void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const Tensor& loss, const Tensor& rescale) {
  const DeviceGuard guard(rows.loss);
  const cudaStream_t stream = current_stream(rows.loss);
  with_compute_type(rows.loss.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ReductionTask<T> task{input<T>(rows.loss), input<bool>(rows.live), rows.loss.numel(), mean, output<T>(loss),
                                output<T>(rescale)};
    STD_CUDA_CHECK(launch_reduction(task, stream));
  });
}

void scale_in_place(const Tensor& x, const Tensor& factor) {
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  with_type(x.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if constexpr (std::is_same_v<E, __half>) {
      CW_CHECK_TYPE(false, "gradients are kept in fp64, fp32 or bf16, got ", x.scalar_type());
    } else {
      const bool per_row = factor.dim() > 0;
      const int64_t rows = per_row ? x.size(0) : 1;
      const ScaleTask<E> task{output<E>(x), input<typename Compute<E>::type>(factor), per_row, rows, x.numel() / rows};
      STD_CUDA_CHECK(launch_scale(task, stream));
    }
  });
}

namespace {

// x of dtype X times factor, where that is defined, and scale.
template <typename X, typename E>
void scaled_copy(const Tensor& x, const Tensor& factor, double scale, bool keeps_all, const Tensor& out) {
  if (x.numel() == 0) return;
  const bool per_row = factor.defined() && factor.dim() > 0;
  const int64_t rows = per_row ? x.size(0) : 1;
  const ScaledCopyTask<X, E> task{input<X>(x), input<typename Compute<E>::type>(factor), per_row, scale, keeps_all,
                                  rows,        x.numel() / rows,                         output<E>(out)};
  STD_CUDA_CHECK(launch_scaled_copy(task, current_stream(x)));
}

}  // namespace

void scale_rows(const Tensor& x, const Tensor& factor, const Tensor& out) {
  const DeviceGuard guard(x);
  with_type(out.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if (x.scalar_type() == out.scalar_type()) {
      if constexpr (std::is_same_v<E, __half>) {
        CW_CHECK_TYPE(false, "gradients are kept in fp64, fp32 or bf16, got ", x.scalar_type());
      } else {
        scaled_copy<E, E>(x, factor, 1, true, out);
      }
    } else {
      scaled_copy<typename Compute<E>::type, E>(x, factor, 1, true, out);
    }
  });
}

void copy_finite(const Tensor& x, const Tensor& factor, double scale, const Tensor& out) {
  with_compute_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    if (out.scalar_type() == x.scalar_type()) {
      scaled_copy<T, T>(x, factor, scale, false, out);
    } else {
      scaled_copy<float, __nv_bfloat16>(x, factor, scale, false, out);
    }
  });
}

void sort(const SortedPairs& pairs, const Tensor& like) {
  const cudaStream_t stream = current_stream(like);
  size_t bytes = 0;
  STD_CUDA_CHECK(sort_pairs(nullptr, &bytes, pairs, stream));
  const Tensor temporary = empty({std::max<int64_t>(1, int64_t(bytes))}, options_of(like, kByte));
  STD_CUDA_CHECK(sort_pairs(temporary.mutable_data_ptr(), &bytes, pairs, stream));
}

void add(const Tensor& x, const Tensor& sum) {
  with_compute_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    STD_CUDA_CHECK(launch_add(input<T>(x), output<T>(sum), x.numel(), current_stream(x)));
  });
}

}  // namespace cw_cuda
