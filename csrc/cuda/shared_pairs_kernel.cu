// From embeddings with shared negatives: a row's positive and extra positives, around the products with the negatives.
#include <limits>

#include "pair_ids.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kResident = 4;  // blocks that a multiprocessor holds: as many as go without spilling

// A group of lanes takes a pair.
template <typename In, int V>
__global__ void __launch_bounds__(kThreads) positive_scores_kernel(const PositiveScoresTask<In> task) {
  using T = typename Compute<In>::type;
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const int64_t m = task.pairs.m, width = 1 + m, count = task.rows * width;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = int64_t(gridDim.x) * kWarps * lanes.count;
  for (int64_t first = warp * lanes.count; first < count; first += step) {
    const int64_t p = first + lanes.group, b = p / width, c = p - b * width;
    const int64_t id = p < count ? pair_id(task.pairs, b, c) : -1;
    const int64_t own_chunks = id < 0 ? 0 : chunks;
    const T* const query = task.unit_queries + b * task.dim;
    const In* const item = task.items + id * task.dim;
    T dot = T(0), squared = T(0);
    for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
      T q[V], x[V];
      load<V>(query + chunk * V, q);
      load<V>(item + chunk * V, x);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        dot += q[v] * x[v];
        squared += x[v] * x[v];
      }
    }
    dot = lanes.sum_in_group(dot);
    squared = lanes.sum_in_group(squared);
    if (lanes.rank != 0 || p >= count) continue;
    const T inverse = task.normalized ? inverse_norm(squared) : T(1);
    const T score = task.scale * dot * inverse;
    task.inverse[p] = inverse;
    if (c == 0) {
      task.pos[b] = score;
    } else {
      task.extra[b * m + c - 1] = id < 0 ? -std::numeric_limits<T>::infinity() : score;
    }
  }
}

// A group of lanes takes a row.
template <typename In, int V>
__global__ void __launch_bounds__(kThreads, kResident) query_gradient_kernel(const QueryGradientTask<In> task) {
  using T = typename Compute<In>::type;
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const int64_t m = task.pairs.m, width = 1 + m;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = int64_t(gridDim.x) * kWarps * lanes.count;
  for (int64_t first = warp * lanes.count; first < task.rows; first += step) {
    const int64_t b = first + lanes.group;
    const bool has_row = b < task.rows, live = has_row && task.live[b];
    const int64_t own_chunks = has_row ? chunks : 0;
    const auto coefficient = [&](int64_t c) {
      return task.scale * (c == 0 ? task.d_pos[b] : task.d_extra[b * m + c - 1]);
    };
    for (int64_t c = lanes.rank; has_row && c < width; c += lanes.size) {
      task.coefficients[b * width + c] = coefficient(c);
    }

    T along = T(0);
    for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
      T* const to = task.d_queries + b * task.dim + chunk * V;
      T g[V] = {};
      if (live) {
        load<V>(to, g);
#pragma unroll
        for (int v = 0; v < V; ++v) g[v] *= task.scale;
#pragma unroll 1
        for (int64_t c = 0; c < width; ++c) {
          // The item of a pair without weight may hold anything. The scores' kernel has checked the ids.
          const T weight = coefficient(c);
          const int64_t id = c == 0 ? task.pairs.pos_ids[b] : task.pairs.extra_ids[b * m + c - 1];
          if (weight == T(0) || id < 0) continue;
          const T inverse = task.inverse[b * width + c];
          T x[V];
          load<V>(task.items + id * task.dim + chunk * V, x);
#pragma unroll
          for (int v = 0; v < V; ++v) g[v] += weight * (x[v] * inverse);
        }
        if (task.query_inverse) {
          T q[V];
          load<V>(task.unit_queries + b * task.dim + chunk * V, q);
#pragma unroll
          for (int v = 0; v < V; ++v) along += g[v] * q[v];
        }
      }
      store<V>(g, to);
    }
    if (!task.query_inverse) continue;
    along = lanes.sum_in_group(along);
    const T query_inverse = live ? task.query_inverse[b] : T(0);
    for (int64_t chunk = lanes.rank; live && chunk < chunks; chunk += lanes.size) {
      T* const to = task.d_queries + b * task.dim + chunk * V;
      T g[V], q[V];
      load<V>(to, g);
      load<V>(task.unit_queries + b * task.dim + chunk * V, q);
#pragma unroll
      for (int v = 0; v < V; ++v) g[v] = query_inverse * (g[v] - along * q[v]);
      store<V>(g, to);
    }
  }
}

}  // namespace

template <typename In>
cudaError_t launch_positive_scores(const PositiveScoresTask<In>& task, cudaStream_t stream) {
  const int64_t count = task.rows * (1 + task.pairs.m);
  if (count == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  const bool vectorizable = rows_are_aligned(task.items, task.dim) && is_aligned(task.unit_queries);
  const auto kernel = vectorizable ? positive_scores_kernel<In, kVec> : positive_scores_kernel<In, 1>;
  return launch_kernel(kernel, grid_of(count, kWarps), kThreads, 0, stream, task);
}

template <typename In>
cudaError_t launch_query_gradient(const QueryGradientTask<In>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  const bool vectorizable =
      rows_are_aligned(task.items, task.dim) && is_aligned(task.unit_queries) && is_aligned(task.d_queries);
  const auto kernel = vectorizable ? query_gradient_kernel<In, kVec> : query_gradient_kernel<In, 1>;
  return launch_kernel(kernel, grid_of(task.rows, kWarps), kThreads, 0, stream, task);
}

#define CW_INSTANTIATE(In)                                                                       \
  template cudaError_t launch_positive_scores(const PositiveScoresTask<In>&, cudaStream_t);      \
  template cudaError_t launch_query_gradient(const QueryGradientTask<In>&, cudaStream_t);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(__half)
CW_INSTANTIATE(__nv_bfloat16)

}  // namespace cw_cuda
