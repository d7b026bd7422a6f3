// Scores of given items, without a loss: a block takes a part of a row's ids.
#include "../cw_row.h"
#include "looked_up_scores.cuh"

namespace cw_cuda {

namespace {

using namespace CW_NAMESPACE;

constexpr int64_t kColumns = 1024;  // of a part

template <typename In, int V>
__global__ void __launch_bounds__(kThreads, kResident<In>) candidate_scores_kernel(const CandidateScoresTask<In> task) {
  using T = typename Compute<In>::type;
  T* const unit_query = reinterpret_cast<T*>(dynamic_shared);  // [D]
  __shared__ T sums[kWarps];
  const Lanes lanes(task.dim / V);
  const int64_t parts = blocks_of(task.k, kColumns);
  for (int64_t part = blockIdx.x; part < task.rows * parts; part += gridDim.x) {
    const int64_t b = part / parts, column = part % parts * kColumns, first = b * task.k + column;
    load_unit_query(task.queries + b * task.dim, task.dim, task.normalized, unit_query, static_cast<T*>(nullptr), sums);
    score_items<V>(
        task.items, task.dim, task.normalized, lanes, unit_query, kColumns < task.k - column ? kColumns : task.k - column,
        [&](int64_t c) { return candidate_id(task, first + c); },
        [&](int64_t c, int64_t id, T dot, T unit) {
          task.out[first + c] = id < 0 ? -infinity<T>() : task.scale * dot * unit;
        });
    __syncthreads();  // the next part overwrites the query
  }
}

}  // namespace

template <typename In>
cudaError_t launch_candidate_scores(const CandidateScoresTask<In>& task, cudaStream_t stream) {
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  const int64_t parts = task.rows * blocks_of(task.k, kColumns);
  if (parts == 0) return cudaSuccess;
  const size_t bytes = size_t(task.dim) * sizeof(typename Compute<In>::type);
  size_t most;
  if (const auto error = most_shared_memory(&most)) return error;
  if (bytes > most) return cudaErrorInvalidConfiguration;
  const auto launch = [&](auto kernel) {
    if (const auto error = allow_shared_memory(kernel, bytes)) return error;
    return launch_kernel(kernel, grid_of(parts, 1), kThreads, bytes, stream, task);
  };
  return rows_are_aligned(task.items, task.dim) ? launch(candidate_scores_kernel<In, kVec>)
                                                : launch(candidate_scores_kernel<In, 1>);
}

template cudaError_t launch_candidate_scores(const CandidateScoresTask<float>&, cudaStream_t);
template cudaError_t launch_candidate_scores(const CandidateScoresTask<double>&, cudaStream_t);
template cudaError_t launch_candidate_scores(const CandidateScoresTask<__half>&, cudaStream_t);
template cudaError_t launch_candidate_scores(const CandidateScoresTask<__nv_bfloat16>&, cudaStream_t);

}  // namespace cw_cuda
