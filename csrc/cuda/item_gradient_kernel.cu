// The gradient of the item table: a sum per item by atomic additions (sorted_sum_kernel.cu has the other way), and the way back
// through the normalisation.
#include "pair_ids.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void add_together(float* to, const float (&x)[4]) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}
#endif

template <int V, typename T>
__device__ __forceinline__ void atomic_add(T* to, const T (&x)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V == 4 && std::is_same_v<T, float>) {
    add_together(to, x);
    return;
  } else
#endif
  {
#pragma unroll
    for (int v = 0; v < V; ++v) atomicAdd(to + v, x[v]);
  }
}

// A warp takes 32 pairs of one row at a time: each lane looks up one, and the groups then take the pairs in turn.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) atomic_sum_kernel(const ItemSumTask<T> task) {
  const int64_t width = 1 + task.pairs.m + task.pairs.n;
  const int64_t parts = (width + kWarp - 1) / kWarp;
  const int64_t chunks = task.dim / V;
  const int lane = int(threadIdx.x) % kWarp;
  const Lanes lanes(chunks);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  for (int64_t t = warp; t < task.rows * parts; t += int64_t(gridDim.x) * kWarps) {
    const int64_t b = t / parts;
    const int64_t c = (t - b * parts) * kWarp + lane;
    T looked_up = T(0);
    int64_t looked_up_id = -1;
    if (c < width) {
      looked_up = coefficient_of(task, b * width + c);
      // The source of a pair without weight may hold anything.
      if (looked_up != T(0)) looked_up_id = pair_id(task.pairs, b, c);
    }
    for (int64_t tile = 0; tile < chunks; tile += lanes.size) {
      const int64_t chunk = tile + lanes.rank;
      T source[V] = {};
      if (chunk < chunks) load<V>(task.sources + b * task.dim + chunk * V, source);
      for (int done = 0; done < kWarp; done += lanes.count) {
        const T coefficient = __shfl_sync(kAllLanes, looked_up, done + lanes.group);
        const int64_t id = __shfl_sync(kAllLanes, looked_up_id, done + lanes.group);
        if (id < 0 || chunk >= chunks) continue;
        T x[V];
#pragma unroll
        for (int v = 0; v < V; ++v) x[v] = coefficient * source[v];
        atomic_add<V>(task.sum + id * task.dim + chunk * V, x);
      }
    }
  }
}

// A group of lanes takes an item.
template <typename In, int V>
__global__ void __launch_bounds__(kThreads) projection_kernel(const ProjectionTask<In> task) {
  using T = typename Compute<In>::type;
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const bool in_place = static_cast<const void*>(task.sum) == static_cast<const void*>(task.gradient);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = int64_t(gridDim.x) * kWarps * lanes.count;
  for (int64_t first = warp * lanes.count; first < task.num_items; first += step) {
    const int64_t i = first + lanes.group;
    const int64_t own_chunks = i < task.num_items ? chunks : 0;
    const T* const sum = task.sum + i * task.dim;
    const In* const item = task.items + i * task.dim;
    int touched = 0;
    for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
      T g[V];
      load<V>(sum + chunk * V, g);
#pragma unroll
      for (int v = 0; v < V; ++v) touched |= g[v] != T(0);
    }
    touched = lanes.sum_in_group(touched);

    T along = T(0), squared = T(0);
    for (int64_t chunk = lanes.rank; touched && chunk < own_chunks; chunk += lanes.size) {
      T g[V], x[V];
      load<V>(sum + chunk * V, g);
      load<V>(item + chunk * V, x);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        along += g[v] * x[v];
        squared += x[v] * x[v];
      }
    }
    const T inverse = inverse_norm(lanes.sum_in_group(squared));
    along = lanes.sum_in_group(along) * inverse;
    if (!touched && in_place) continue;
    for (int64_t chunk = lanes.rank; chunk < own_chunks; chunk += lanes.size) {
      T g[V], x[V];
      load<V>(sum + chunk * V, g);
      if (touched) load<V>(item + chunk * V, x);
#pragma unroll
      for (int v = 0; v < V; ++v) g[v] = touched ? inverse * (g[v] - along * (x[v] * inverse)) : T(0);
      store<V>(g, task.gradient + i * task.dim + chunk * V);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t launch_atomic_sum(const ItemSumTask<T>& task, cudaStream_t stream) {
  const int64_t width = 1 + task.pairs.m + task.pairs.n;
  const int64_t work = task.rows * blocks_of(width, kWarp);
  if (work == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(T));
  const unsigned grid = grid_of(work, kWarps);
  const bool vectorizable = rows_are_aligned(task.sources, task.dim) && is_aligned(task.sum);
  const auto kernel = vectorizable ? atomic_sum_kernel<T, kVec> : atomic_sum_kernel<T, 1>;
  return launch_kernel(kernel, grid, kThreads, 0, stream, task);
}

template <typename In>
cudaError_t launch_projection(const ProjectionTask<In>& task, cudaStream_t stream) {
  if (task.num_items == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(In));
  const bool vectorizable = rows_are_aligned(task.items, task.dim) && is_aligned(task.sum) && is_aligned(task.gradient);
  // A warp takes at least one item; with short rows it takes several, and some of this grid finds nothing to do.
  const unsigned grid = grid_of(task.num_items, kWarps);
  const auto kernel = vectorizable ? projection_kernel<In, kVec> : projection_kernel<In, 1>;
  return launch_kernel(kernel, grid, kThreads, 0, stream, task);
}

template cudaError_t launch_atomic_sum(const ItemSumTask<float>&, cudaStream_t);
template cudaError_t launch_atomic_sum(const ItemSumTask<double>&, cudaStream_t);
template cudaError_t launch_projection(const ProjectionTask<float>&, cudaStream_t);
template cudaError_t launch_projection(const ProjectionTask<double>&, cudaStream_t);
template cudaError_t launch_projection(const ProjectionTask<__half>&, cudaStream_t);
template cudaError_t launch_projection(const ProjectionTask<__nv_bfloat16>&, cudaStream_t);

}  // namespace cw_cuda
