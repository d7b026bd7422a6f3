// The ATen side of the CUDA kernels: from a call's tensors to a task of pointers, on the tensors' device and the
// current stream. Nothing here waits for the device. One file for all levels, since torch's extension builder names
// objects without the ending, and scores.cpp would meet scores.cu.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../backend.h"
#include "kernels.h"
#include "shared_products.h"

namespace cw_cuda {

namespace {

// Pairs that are sorted at a time: places have 32 bits.
constexpr int64_t kMostSorted = int64_t(1) << 30;
// From so many pairs on they are sorted. With fewer the sort's dozen launches take longer than atomic additions do: a
// count, not yet a measurement.
constexpr int64_t kLeastSorted = int64_t(1) << 17;

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
  task.row_scale = input<T>(call.row_scale);
  task.column_scale = input<T>(call.column_scale);
  task.prior = per_row<T>(call.prior);
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
  task.prior = per_row<T>(call.prior);
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

// The pairs of the rows [begin, begin + count).
template <typename T>
ItemSumTask<T> own_pairs(const cw_ext::ItemGradientCall& call, const at::Tensor& sum, int64_t begin, int64_t count) {
  const auto part = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, begin, count) : x; };
  return {input<T>(part(call.sources)),
          input<T>(part(call.coefficients)),
          pairs_of(part(call.pos_ids), part(call.extra_ids), part(call.neg_ids), call.items.size(0)),
          count,
          call.items.size(1),
          output<T>(sum)};
}

// The pairs of the shared negatives: one per further row of the sources, with coefficient 1.
template <typename T>
ItemSumTask<T> shared_pairs(const cw_ext::ItemGradientCall& call, const at::Tensor& sum) {
  const int64_t rows = call.coefficients.size(0), count = call.shared_ids.defined() ? call.shared_ids.size(0) : 0;
  return {input<T>(call.sources) + rows * call.items.size(1),
          nullptr,
          pairs_of(call.shared_ids, at::Tensor(), at::Tensor(), call.items.size(0)),
          count,
          call.items.size(1),
          output<T>(sum)};
}

template <typename T>
void atomic_sum(const cw_ext::ItemGradientCall& call, const at::Tensor& sum, cudaStream_t stream) {
  sum.zero_();
  C10_CUDA_CHECK(launch_atomic_sum(own_pairs<T>(call, sum, 0, call.coefficients.size(0)), stream));
  C10_CUDA_CHECK(launch_atomic_sum(shared_pairs<T>(call, sum), stream));
}

// Adds the sums over the pairs of `own`, and over those of `shared`, whose sources begin at row `further` of own's.
template <typename T>
void add_sorted(const ItemSumTask<T>& own, const ItemSumTask<T>& shared, int64_t further, bool accumulate,
                const at::Tensor& sum, cudaStream_t stream) {
  const int64_t width = 1 + own.pairs.m + own.pairs.n, paired = own.rows * width, count = paired + shared.rows;
  const auto bytes = sum.options().dtype(at::kByte);
  const at::Tensor room = at::empty({4, count}, sum.options().dtype(at::kInt));
  auto* const words = reinterpret_cast<uint32_t*>(room.mutable_data_ptr());
  const SortedPairs pairs{words, words + count, words + 2 * count, words + 3 * count, count, own.pairs.num_items};
  C10_CUDA_CHECK(launch_sort_keys(own, 0, pairs, stream));
  C10_CUDA_CHECK(launch_sort_keys(shared, paired, pairs, stream));
  size_t needed = 0;
  C10_CUDA_CHECK(sort_pairs(nullptr, &needed, pairs, stream));
  const at::Tensor temporary = at::empty({std::max<int64_t>(1, int64_t(needed))}, bytes);
  C10_CUDA_CHECK(sort_pairs(temporary.mutable_data_ptr(), &needed, pairs, stream));

  SortedSumTask<T> task;
  task.sources = own.sources;
  task.coefficients = own.coefficients;
  task.rows = own.rows;
  task.width = width;
  task.further = further;
  task.dim = own.dim;
  task.keys = pairs.keys;
  task.places = pairs.places;
  task.count = count;
  task.num_items = own.pairs.num_items;
  task.accumulate = accumulate;
  task.span = span_of(count);
  const at::Tensor carry = at::empty({(count + task.span - 1) / task.span, 2, task.dim}, sum.options());
  task.carry = output<T>(carry);
  task.sum = own.sum;
  C10_CUDA_CHECK(launch_sorted_sum(task, stream));
}

template <typename T>
void sorted_sum(const cw_ext::ItemGradientCall& call, const at::Tensor& sum, cudaStream_t stream) {
  sum.zero_();
  const int64_t rows = call.coefficients.size(0);
  const int64_t step = std::max<int64_t>(1, kMostSorted / call.coefficients.size(1));
  ItemSumTask<T> shared = shared_pairs<T>(call, sum);
  for (int64_t begin = 0; begin < rows; begin += step) {
    add_sorted(own_pairs<T>(call, sum, begin, std::min(step, rows - begin)), shared, rows, begin > 0, sum, stream);
    shared.rows = 0;  // they are added once
  }
}

// With the shared negatives' sums as further source rows.
cw_ext::ItemGradientCall with_shared_sources(cw_ext::ItemGradientCall call) {
  if (call.shared_ids.defined()) {
    const at::Tensor sources = finite_or_zero(call.sources).to(call.shared_coefficients.scalar_type());
    const at::Tensor sums = product(call.shared_coefficients.t(), sources);
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
  const bool sorts = call.sums == cw_ext::ItemSums::chosen
                         ? at::globalContext().deterministicAlgorithms() || call.coefficients.numel() >= kLeastSorted
                         : call.sums == cw_ext::ItemSums::sorted;
  if (sorts && call.items.size(0) < std::numeric_limits<int32_t>::max()) {
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

void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const at::Tensor& loss, const at::Tensor& share) {
  const c10::cuda::CUDAGuard guard(rows.loss.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto reduce = [&](auto element) {
    using T = decltype(element);
    const ReductionTask<T> task{input<T>(rows.loss), input<bool>(rows.live), rows.loss.numel(), mean, output<T>(loss),
                                output<T>(share)};
    C10_CUDA_CHECK(launch_reduction(task, stream));
  };
  rows.loss.scalar_type() == at::kDouble ? reduce(double{}) : reduce(float{});
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

void item_gradient(const cw_ext::ItemGradientCall& call) {
  if (call.gradient.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(call.items.device());
  with_type(call.items.scalar_type(), [&](auto element) { item_gradient_of<decltype(element)>(call); });
}

}  // namespace cw_cuda
