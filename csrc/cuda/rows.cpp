// Sums over rows, and rows times numbers: from tensors to pointers, as in scores.cpp.
#include <type_traits>

#include "tensors.h"

namespace cw_cuda {

void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const Tensor& loss, const Tensor& rescale) {
  const c10::cuda::CUDAGuard guard(rows.loss.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(rows.loss.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ReductionTask<T> task{input<T>(rows.loss), input<bool>(rows.live), rows.loss.numel(), mean, output<T>(loss),
                                output<T>(rescale)};
    C10_CUDA_CHECK(launch_reduction(task, stream));
  });
}

void scale_in_place(const Tensor& x, const Tensor& factor) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_type(x.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if constexpr (std::is_same_v<E, __half>) {
      CW_CHECK_TYPE(false, "gradients are kept in fp64, fp32 or bf16, got ", x.scalar_type());
    } else {
      const bool per_row = factor.dim() > 0;
      const int64_t rows = per_row ? x.size(0) : 1;
      const ScaleTask<E> task{output<E>(x), input<typename Compute<E>::type>(factor), per_row, rows, x.numel() / rows};
      C10_CUDA_CHECK(launch_scale(task, stream));
    }
  });
}

}  // namespace cw_cuda
