// The ATen side of the CUDA kernels: from a call's tensors to a task of pointers, on the tensors' device and the
// current stream. Nothing here waits for the device. One file for all levels, since torch's extension builder names
// objects without the ending, and scores.cpp would meet scores.cu.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <type_traits>

#include "../backend.h"
#include "kernels.h"

namespace cw_cuda {

namespace {

template <typename Function>
void with_type(at::ScalarType type, Function&& function) {
  switch (type) {
    case at::kFloat:
      return function(float{});
    case at::kDouble:
      return function(double{});
    case at::kHalf:
      return function(__half{});
    case at::kBFloat16:
      return function(__nv_bfloat16{});
    default:
      TORCH_CHECK_TYPE(false, "expected a floating dtype, got ", type);
  }
}

template <typename T>
const T* input(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

template <typename T>
T* output(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

int64_t row_stride(const at::Tensor& t) { return t.defined() ? t.stride(0) : 0; }

template <typename T>
RowValue<T> per_row(const cw_ext::PerRow& x) {
  return {input<T>(x.rows), row_stride(x.rows), T(x.value)};
}

template <typename T>
RowResults<T> row_outputs(const cw_ext::RowOutputs& out) {
  return {output<T>(out.loss), output<bool>(out.live), output<T>(out.d_log_q), output<T>(out.d_prior),
          output<T>(out.d_threshold)};
}

Pairs pairs_of(const at::Tensor& pos_ids, const at::Tensor& extra_ids, const at::Tensor& neg_ids, int64_t num_items) {
  const bool wide = neg_ids.defined() && neg_ids.scalar_type() == at::kLong;
  return {input<int64_t>(pos_ids), input<int64_t>(extra_ids),
          neg_ids.defined() ? neg_ids.const_data_ptr() : nullptr,
          wide,
          extra_ids.defined() ? extra_ids.size(1) : 0,
          neg_ids.defined() ? neg_ids.size(1) : 0,
          num_items};
}

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
  task.prior = per_row<T>(call.prior);
  task.threshold = per_row<T>(call.threshold);
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_pos = output<T>(call.d_pos);
  task.d_neg = output<T>(call.d_neg);
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
  task.prior = per_row<T>(call.prior);
  task.threshold = per_row<T>(call.threshold);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_queries = output<T>(call.d_queries);
  task.unit_queries = output<T>(call.unit_queries);
  task.coefficients = output<T>(call.coefficients);
  C10_CUDA_CHECK(embeddings_blocks(task, &task.blocks));
  TORCH_CHECK_VALUE(task.blocks > 0, "queries: an embedding dimension of ", task.dim,
                    " needs more shared memory than this GPU has");
  const at::Tensor scratch =
      at::empty({task.blocks, 1 + task.pairs.m + task.pairs.n}, call.out.loss.options());
  task.scratch = output<T>(scratch);
  C10_CUDA_CHECK(launch_embeddings(task, c10::cuda::getCurrentCUDAStream()));
}

// The pairs of the rows, and those of the shared negatives: one per source row, with coefficient 1.
template <typename T>
struct ItemSums {
  ItemSumTask<T> own;
  ItemSumTask<T> shared;
};

template <typename T>
ItemSums<T> item_sums(const cw_ext::ItemGradientCall& call, const at::Tensor& sum) {
  const int64_t rows = call.coefficients.size(0), dim = call.items.size(1), num_items = call.items.size(0);
  const T* const sources = input<T>(call.sources);
  ItemSums<T> sums;
  sums.own = {sources,
              input<T>(call.coefficients),
              pairs_of(call.pos_ids, call.extra_ids, call.neg_ids, num_items),
              rows,
              dim,
              output<T>(sum)};
  sums.shared = {sources + rows * dim,
                 nullptr,
                 pairs_of(call.shared_ids, at::Tensor(), at::Tensor(), num_items),
                 call.shared_ids.defined() ? call.shared_ids.size(0) : 0,
                 dim,
                 output<T>(sum)};
  return sums;
}

template <typename T>
void atomic_sum(const cw_ext::ItemGradientCall& call, const at::Tensor& sum, cudaStream_t stream) {
  const ItemSums<T> sums = item_sums<T>(call, sum);
  sum.zero_();
  C10_CUDA_CHECK(launch_atomic_sum(sums.own, stream));
  C10_CUDA_CHECK(launch_atomic_sum(sums.shared, stream));
}

template <typename T>
void sorted_sum(const cw_ext::ItemGradientCall& call, const at::Tensor& sum, cudaStream_t stream) {
  const ItemSums<T> sums = item_sums<T>(call, sum);
  const int64_t paired = call.coefficients.numel();
  const at::Tensor keys = at::empty({paired + sums.shared.rows}, call.pos_ids.options());
  C10_CUDA_CHECK(launch_sort_keys(sums.own, output<int64_t>(keys), stream));
  C10_CUDA_CHECK(launch_sort_keys(sums.shared, output<int64_t>(keys) + paired, stream));
  const auto [sorted, places] = at::sort(keys, std::optional<bool>(true), 0, false);

  SortedSumTask<T> task;
  task.sources = sums.own.sources;
  task.coefficients = sums.own.coefficients;
  task.rows = sums.own.rows;
  task.width = call.coefficients.size(1);
  task.dim = sums.own.dim;
  task.keys = input<int64_t>(sorted);
  task.places = input<int64_t>(places);
  task.count = keys.numel();
  task.num_items = call.items.size(0);
  task.sum = output<T>(sum);
  C10_CUDA_CHECK(launch_sorted_sum(task, stream));
}

// With the shared negatives' sums as further source rows.
cw_ext::ItemGradientCall with_shared_sources(cw_ext::ItemGradientCall call) {
  if (call.shared_ids.defined()) {
    const at::Tensor sums = at::mm(call.shared_coefficients.t(), cw_ext::finite_or_zero(call.sources));
    call.sources = at::cat({call.sources, at::mul(sums, call.scale)});
  }
  return call;
}

template <typename In>
void item_gradient_of(const cw_ext::ItemGradientCall& given) {
  using T = typename Compute<In>::type;
  const cw_ext::ItemGradientCall call = with_shared_sources(given);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  constexpr bool kInPlace = std::is_same_v<In, T>;
  const at::Tensor sum = kInPlace ? call.gradient : at::empty(call.gradient.sizes(), call.sources.options());
  if (at::globalContext().deterministicAlgorithms()) {
    sorted_sum<T>(call, sum, stream);
  } else {
    atomic_sum<T>(call, sum, stream);
  }
  if (call.normalized) {
    const ProjectionTask<In> task{input<T>(sum), input<In>(call.items), call.items.size(0), call.items.size(1),
                                  output<In>(call.gradient)};
    C10_CUDA_CHECK(launch_projection(task, stream));
  } else if (!kInPlace) {
    call.gradient.copy_(sum);
  }
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

void item_gradient(const cw_ext::ItemGradientCall& call) {
  if (call.gradient.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(call.items.device());
  with_type(call.items.scalar_type(), [&](auto element) { item_gradient_of<decltype(element)>(call); });
}

}  // namespace cw_cuda
