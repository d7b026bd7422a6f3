// The ATen side of the CUDA kernels: from a call's tensors to a task of pointers, on the tensors' device and the
// current stream. Nothing here waits for the device. Levels 1 and 2, and rows; torch's extension builder names objects
// without the ending, so names differ in more than that.
#include <ATen/Functions.h>

#include <type_traits>

#include "tensors.h"

namespace cw_cuda {

namespace {

template <typename In>
void scores_of(const cw_ext::ScoresCall& call) {
  using T = typename Compute<In>::type;
  ScoresTask<In> task;
  task.arguments = call.arguments;
  task.rows = call.pos.size(0);
  task.pos = input<In>(call.pos);
  task.pos_stride = row_stride(call.pos);
  task.neg = input<In>(call.neg);
  task.neg_stride = row_stride(call.neg);
  task.n = call.neg.size(1);
  task.extra = input<In>(call.extra);
  task.extra_stride = row_stride(call.extra);
  task.m = call.extra.size(1);
  task.log_q = input<T>(call.log_q);
  task.log_q_stride = row_stride(call.log_q);
  task.row_scale = input<T>(call.row_scale);
  task.column_scale = input<T>(call.column_scale);
  task.excluded = input<int32_t>(call.excluded);
  task.prior = row_prior(per_row<T>(call.prior), call.prior.value);
  task.threshold = per_row<T>(call.threshold);
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_pos = output<T>(call.d_pos);
  task.d_neg = output<typename Kept<In>::type>(call.d_neg);
  task.d_extra = output<T>(call.d_extra);
  C10_CUDA_CHECK(launch_scores(task, c10::cuda::getCurrentCUDAStream()));
}

template <typename In>
void embeddings_of(const cw_ext::EmbeddingsCall& call) {
  using T = typename Compute<In>::type;
  EmbeddingsTask<In> task;
  task.arguments = call.arguments;
  task.rows = call.queries.size(0);
  task.queries = input<In>(call.queries);
  task.items = input<In>(call.items);
  task.dim = call.queries.size(1);
  task.pairs = pairs_of(call.pos_ids, call.extra_ids, call.neg_ids, call.items.size(0));
  task.log_q = input<T>(call.log_q);
  task.log_q_stride = row_stride(call.log_q);
  task.prior = row_prior(per_row<T>(call.prior), call.prior.value);
  task.threshold = per_row<T>(call.threshold);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_queries = output<T>(call.d_queries);
  task.unit_queries = output<T>(call.unit_queries);
  task.coefficients = output<T>(call.coefficients);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if constexpr (!std::is_same_v<In, double>) {
    if (takes_one_visit(task)) {
      C10_CUDA_CHECK(launch_one_visit(task, stream));
      return;
    }
  }
  C10_CUDA_CHECK(embeddings_blocks(task, &task.blocks));
  TORCH_CHECK_VALUE(task.blocks > 0, "queries: an embedding dimension of ", task.dim,
                    " needs more shared memory than this GPU has");
  const at::Tensor scratch =
      at::empty({task.blocks, 1 + task.pairs.m + task.pairs.n}, call.out.loss.options());
  task.scratch = output<T>(scratch);
  C10_CUDA_CHECK(launch_embeddings(task, stream));
}

}  // namespace

void scores(const cw_ext::ScoresCall& call) {
  if (call.pos.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(call.pos.device());
  with_type(call.pos.scalar_type(), [&](auto element) { scores_of<decltype(element)>(call); });
}

void embeddings(const cw_ext::EmbeddingsCall& call) {
  if (call.queries.size(0) == 0) return;
  const c10::cuda::CUDAGuard guard(call.queries.device());
  with_type(call.queries.scalar_type(), [&](auto element) { embeddings_of<decltype(element)>(call); });
}

void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const at::Tensor& loss, const at::Tensor& rescale) {
  const c10::cuda::CUDAGuard guard(rows.loss.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(rows.loss.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ReductionTask<T> task{input<T>(rows.loss), input<bool>(rows.live), rows.loss.numel(), mean, output<T>(loss),
                                output<T>(rescale)};
    C10_CUDA_CHECK(launch_reduction(task, stream));
  });
}

void scale_in_place(const at::Tensor& x, const at::Tensor& factor) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_type(x.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if constexpr (std::is_same_v<E, __half>) {
      TORCH_CHECK_TYPE(false, "gradients are kept in fp64, fp32 or bf16, got ", x.scalar_type());
    } else {
      const bool per_row = factor.dim() > 0;
      const int64_t rows = per_row ? x.size(0) : 1;
      const ScaleTask<E> task{output<E>(x), input<typename Compute<E>::type>(factor), per_row, rows, x.numel() / rows};
      C10_CUDA_CHECK(launch_scale(task, stream));
    }
  });
}

}  // namespace cw_cuda
