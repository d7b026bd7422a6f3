// From embeddings with shared negatives: queries and negatives as its products take them. A group of lanes takes a row.
#include <limits>

#include "pair_ids.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Twice in a product; a norm that is larger does not fit fp32 when squared.
constexpr double kSmallestFactor = 1e-18;

template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T(0);
}

template <typename In>
__device__ __forceinline__ typename Compute<In>::type factor_of(const SharedRowsTask<In>& task, int64_t id,
                                                                typename Compute<In>::type inverse) {
  using T = typename Compute<In>::type;
  if (id < 0) return T(-1);
  if (!task.by_norms) return task.scale;
  const bool usable = !task.marks || inverse > T(kSmallestFactor);  // NaN is not
  return task.scale * (usable ? inverse : T(kSmallestFactor));
}

template <typename In, int V>
__global__ void __launch_bounds__(kThreads) shared_rows_kernel(const SharedRowsTask<In> task) {
  using T = typename Compute<In>::type;
  using K = typename Kept<In>::type;
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const Pairs negatives{nullptr, nullptr, task.ids, true, 0, task.rows, task.num_items};
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = int64_t(gridDim.x) * kWarps * lanes.count;
  for (int64_t first = warp * lanes.count; first < task.rows; first += step) {
    const int64_t r = first + lanes.group;
    int64_t id = -1;
    if (r < task.rows) id = task.gathers ? negative_id(negatives, 0, r) : task.ids[r];
    const bool padding = task.gathers && id < 0;
    const int64_t own_chunks = r < task.rows ? chunks : 0;
    const In* const row = task.table + (padding ? 0 : task.gathers ? id : r) * task.dim;
    const auto chunk_of = [&](int64_t chunk, T(&x)[V]) {
      if (padding) {
#pragma unroll
        for (int v = 0; v < V; ++v) x[v] = T(0);
      } else {
        load<V>(row + chunk * V, x);
      }
    };

    T squared = T(0);
    int spoiled = 0;
    if (task.normalized) {
      for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
        T x[V];
        chunk_of(chunk, x);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          squared += x[v] * x[v];
          spoiled |= !is_finite(x[v]);
        }
      }
      squared = lanes.sum_in_group(squared);
      spoiled = lanes.sum_in_group(spoiled);
    }
    const bool to_nan = task.marks && task.gathers && spoiled;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const T inverse = to_nan ? nan : task.normalized ? inverse_norm(squared) : T(1);
    if (lanes.rank == 0 && r < task.rows) {
      if (task.inverse) task.inverse[r] = inverse;
      task.factors[r] = factor_of(task, id, inverse);
    }

    for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
      const int64_t to = r * task.dim + chunk * V;
      T x[V];
      chunk_of(chunk, x);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (to_nan) x[v] = nan;
      }
      if (task.gathered) store<V>(x, task.gathered + to);
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] *= inverse;
      if (task.unit) store<V>(x, task.unit + to);
      if (!task.carried) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        K kept;
        from_compute(x[v], kept);
        if (!is_finite(to_compute(kept))) x[v] = T(0);
      }
      store<V>(x, task.carried + to);
    }
  }
}

}  // namespace

template <typename In>
cudaError_t launch_shared_rows(const SharedRowsTask<In>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  const bool vectorizable = rows_are_aligned(task.table, task.dim) && is_aligned(task.gathered) &&
                            is_aligned(task.unit) && is_aligned(task.carried);
  const auto kernel = vectorizable ? shared_rows_kernel<In, kVec> : shared_rows_kernel<In, 1>;
  return launch_kernel(kernel, grid_of(task.rows, kWarps), kThreads, 0, stream, task);
}

template cudaError_t launch_shared_rows(const SharedRowsTask<float>&, cudaStream_t);
template cudaError_t launch_shared_rows(const SharedRowsTask<double>&, cudaStream_t);
template cudaError_t launch_shared_rows(const SharedRowsTask<__half>&, cudaStream_t);
template cudaError_t launch_shared_rows(const SharedRowsTask<__nv_bfloat16>&, cudaStream_t);

}  // namespace cw_cuda
