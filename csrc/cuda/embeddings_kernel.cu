// From embeddings, each row with its own negatives, for what embeddings_online_kernel.cu does not take: a block takes a row.
// It reads the items twice, for the scores and for the query's gradient; nothing of size B·N·D exists. In between, a row's
// scores are kept in the place of its coefficients, and the inverse norms of its items in scratch of the size of the rows in
// flight.
#include "embedding_row.cuh"
#include "looked_up_scores.cuh"

namespace cw_cuda {

namespace {

// Dynamic shared memory: the query over its norm and its gradient, both [D].
template <typename In>
size_t shared_bytes(const EmbeddingsTask<In>& task) {
  return 2 * size_t(task.dim) * sizeof(typename Compute<In>::type);
}

template <typename In, int V>
__global__ void __launch_bounds__(kThreads, kResident<In>)
    embeddings_kernel(const EmbeddingsTask<In> task, const Parameters<typename Compute<In>::type> common) {
  using T = typename Compute<In>::type;
  T* const unit_query = reinterpret_cast<T*>(dynamic_shared);
  T* const d_query = unit_query + task.dim;
  __shared__ TeamScratch<T, kWarps> scratch;
  __shared__ T partial[kWarps][kWarp * V];

  const Pairs& pairs = task.pairs;
  const int64_t dim = task.dim;
  const int64_t width = 1 + pairs.m + pairs.n;
  const Lanes lanes(dim / V);
  T* const own_scratch = task.scratch + int64_t(blockIdx.x) * width;

  for (int64_t b = blockIdx.x; b < task.rows; b += gridDim.x) {
    const T query_inverse = load_unit_query(task.queries + b * dim, dim, task.normalized, unit_query,
                                            task.with_gradients ? task.unit_queries + b * dim : nullptr, scratch.sums);

    T* const scores = task.with_gradients ? task.coefficients + b * width : own_scratch;
    T* const inverse = task.with_gradients ? own_scratch : nullptr;
    // A padded extra positive gets −∞; walk_row masks the other padded pairs' scores.
    score_items<V>(
        task.items, dim, task.normalized, lanes, unit_query, width,
        [&](int64_t c) { return pair_id(pairs, b, c); },
        [&](int64_t c, int64_t id, T dot, T unit) {
          const bool absent = id < 0 && c > 0 && c <= pairs.m;
          scores[c] = absent ? -infinity<T>() : task.scale * dot * unit;
          if (inverse) inverse[c] = unit;
        });
    __syncthreads();

    const EmbeddingRow<T> row = embedding_row(task, b, scores[0], scores);
    walk_row<kWarps>(row, b, row_parameters(task, common, b), task.with_gradients, task.out, scratch);
    __syncthreads();  // the coefficients are written
    if (!task.with_gradients) continue;

    const bool regular = scratch.plan.regular;
    const T filler = scratch.plan.filler;
    weighted_sum<kWarps, V>(
        task.items, width, dim, lanes,
        [&](int64_t c) -> Term<T> {
          const T coefficient = scores[c];
          if (coefficient == T(0)) return {T(0), 0};
          const int64_t id = pair_id(pairs, b, c);
          return id < 0 ? Term<T>{T(0), 0} : Term<T>{coefficient * inverse[c], id};
        },
        partial, d_query);

    // Through the normalisation: the gradient without its component along the query, divided by the query's norm.
    T along = T(0);
#pragma unroll 1
    for (int64_t d = threadIdx.x; d < dim; d += kThreads) along += d_query[d] * unit_query[d];
    along = Team<kWarps>::sum(along, scratch.sums);
#pragma unroll 1
    for (int64_t d = threadIdx.x; d < dim; d += kThreads) {
      const T projected = query_inverse * (d_query[d] - along * unit_query[d]);
      // The query of a dead row may hold anything.
      task.d_queries[b * dim + d] = !regular ? filler : task.normalized ? projected : d_query[d];
    }
    __syncthreads();
  }
}

// Calls use(kernel) with the kernel for the task's alignment.
template <typename In, typename Use>
cudaError_t with_kernel(const EmbeddingsTask<In>& task, Use&& use) {
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  return rows_are_aligned(task.items, task.dim) ? use(embeddings_kernel<In, kVec>) : use(embeddings_kernel<In, 1>);
}

}  // namespace

template <typename In>
cudaError_t embeddings_blocks(const EmbeddingsTask<In>& task, int* blocks) {
  return with_kernel(task, [&](auto kernel) {
    const size_t bytes = shared_bytes(task);
    int device, processors, per_processor;
    if (const auto error = allow_shared_memory(kernel, bytes)) return error;
    if (const auto error = cudaGetDevice(&device)) return error;
    if (const auto error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return error;
    if (const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, bytes)) {
      return error;
    }
    const int64_t most = int64_t(processors) * per_processor;
    *blocks = int(task.rows < most ? task.rows : most);
    return cudaSuccess;
  });
}

template <typename In>
cudaError_t launch_embeddings(const EmbeddingsTask<In>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  if (task.blocks <= 0) return cudaErrorInvalidConfiguration;
  const auto p = make_parameters<typename Compute<In>::type>(task.arguments, task.values.temperature.all);
  return with_kernel(task, [&](auto kernel) {
    return launch_kernel(kernel, unsigned(task.blocks), kThreads, shared_bytes(task), stream, task, p);
  });
}

#define CW_INSTANTIATE(In)                                                      \
  template cudaError_t embeddings_blocks(const EmbeddingsTask<In>&, int*);      \
  template cudaError_t launch_embeddings(const EmbeddingsTask<In>&, cudaStream_t);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(__half)
CW_INSTANTIATE(__nv_bfloat16)

}  // namespace cw_cuda
