// What is done with the rows' results: their losses reduced to one number, their gradients scaled; and copies and sums.
#include "warp.cuh"

namespace cw_cuda {

namespace {

constexpr int kReducingThreads = 1024;
constexpr int kScalingThreads = 256;
constexpr int64_t kScalingGrid = 132 * 16;  // blocks; beyond that each takes several parts

// One block, so that the order of the additions is always the same. The sums are in fp64, as on the CPU.
template <typename T>
__global__ void __launch_bounds__(kReducingThreads) reduction_kernel(const ReductionTask<T> task) {
  using OwnTeam = Team<kReducingThreads / kWarp>;
  __shared__ double scratch[kReducingThreads / kWarp];
  double total = 0, live = 0;
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < task.rows; b += kReducingThreads) {
    total += double(task.losses[b]);
    live += task.live[b] ? 1 : 0;
  }
  total = OwnTeam::sum(total, scratch);
  live = OwnTeam::sum(live, scratch);
  if (threadIdx.x != 0) return;
  const double count = live > 1 ? live : 1;
  *task.loss = T(task.mean ? total / count : total);
  if (task.mean) *task.rescale = T(double(task.rows) / count);
}

template <typename E>
__global__ void __launch_bounds__(kScalingThreads) scale_kernel(const ScaleTask<E> task) {
  using T = typename Compute<E>::type;
  constexpr int V = kVectorBytes / int(sizeof(E));
  const int64_t first = int64_t(blockIdx.x) * kScalingThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kScalingThreads;
  const int64_t count = task.rows * task.width;
  if (task.factor_per_row) {
#pragma unroll 1
    for (int64_t i = first; i < count; i += step) {
      const T factor = task.factor[i / task.width];
      if (factor != T(1)) from_compute(to_compute(task.x[i]) * factor, task.x[i]);
    }
    return;
  }
  const T factor = *task.factor;
  if (factor == T(1)) return;
  const int64_t chunks = is_aligned(task.x) ? count / V : 0;
#pragma unroll 4
  for (int64_t i = first; i < chunks; i += step) {
    T x[V];
    load<V>(task.x + i * V, x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] *= factor;
    store<V>(x, task.x + i * V);
  }
#pragma unroll 1
  for (int64_t i = chunks * V + first; i < count; i += step) {
    from_compute(to_compute(task.x[i]) * factor, task.x[i]);
  }
}

template <typename X, typename E, int V>
__device__ __forceinline__ void copy_scaled(const ScaledCopyTask<X, E>& task, int64_t i,
                                            typename Compute<E>::type factor) {
  using T = typename Compute<E>::type;
  T x[V];
  load<V>(task.x + i, x);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    x[v] *= factor;
    if (task.keeps_all) continue;
    E rounded;
    from_compute(x[v], rounded);
    const T kept = to_compute(rounded);
    if (kept - kept != T(0)) x[v] = T(0);
  }
  store<V>(x, task.out + i);
}

template <typename X, typename E>
__global__ void __launch_bounds__(kScalingThreads) scaled_copy_kernel(const ScaledCopyTask<X, E> task) {
  using T = typename Compute<E>::type;
  constexpr int V = kVectorBytes / int(sizeof(E));
  const int64_t first = int64_t(blockIdx.x) * kScalingThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kScalingThreads;
  const int64_t count = task.rows * task.width;
  const bool narrow = count <= int64_t(0xffffffffu);  // 64-bit division is slow
  const T common = T(task.scale) * (task.factor && !task.factor_per_row ? *task.factor : T(1));
  const auto factor_at = [&](int64_t i) {
    if (!task.factor_per_row) return common;
    return common * task.factor[narrow ? uint32_t(i) / uint32_t(task.width) : i / task.width];
  };
  const bool whole = !task.factor_per_row || task.width % V == 0;  // no chunk belongs to two rows
  const int64_t chunks = whole && is_aligned(task.x) && is_aligned(task.out) ? count / V : 0;
#pragma unroll 2
  for (int64_t i = first; i < chunks; i += step) copy_scaled<X, E, V>(task, i * V, factor_at(i * V));
#pragma unroll 1
  for (int64_t i = chunks * V + first; i < count; i += step) copy_scaled<X, E, 1>(task, i, factor_at(i));
}

template <typename T>
__global__ void __launch_bounds__(kScalingThreads) add_kernel(const T* from, T* to, int64_t count) {
  constexpr int V = kVectorBytes / int(sizeof(T));
  const int64_t first = int64_t(blockIdx.x) * kScalingThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kScalingThreads;
  const int64_t chunks = is_aligned(from) && is_aligned(to) ? count / V : 0;
#pragma unroll 2
  for (int64_t i = first; i < chunks; i += step) {
    T x[V], sum[V];
    load<V>(from + i * V, x);
    load<V>(to + i * V, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += x[v];
    store<V>(sum, to + i * V);
  }
#pragma unroll 1
  for (int64_t i = chunks * V + first; i < count; i += step) to[i] += from[i];
}

template <typename E>
unsigned scaling_grid(int64_t count) {
  const int64_t blocks = blocks_of(count, kScalingThreads * kVectorBytes / int64_t(sizeof(E)));
  return unsigned(blocks < kScalingGrid ? blocks : kScalingGrid);
}

}  // namespace

template <typename T>
cudaError_t launch_reduction(const ReductionTask<T>& task, cudaStream_t stream) {
  return launch_kernel(reduction_kernel<T>, 1, kReducingThreads, 0, stream, task);
}

template <typename E>
cudaError_t launch_scale(const ScaleTask<E>& task, cudaStream_t stream) {
  const int64_t count = task.rows * task.width;
  if (count == 0) return cudaSuccess;
  return launch_kernel(scale_kernel<E>, scaling_grid<E>(count), kScalingThreads, 0, stream, task);
}

template <typename X, typename E>
cudaError_t launch_scaled_copy(const ScaledCopyTask<X, E>& task, cudaStream_t stream) {
  const int64_t count = task.rows * task.width;
  if (count == 0) return cudaSuccess;
  return launch_kernel(scaled_copy_kernel<X, E>, scaling_grid<E>(count), kScalingThreads, 0, stream, task);
}

template <typename T>
cudaError_t launch_add(const T* x, T* sum, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return launch_kernel(add_kernel<T>, scaling_grid<T>(count), kScalingThreads, 0, stream, x, sum, count);
}

template cudaError_t launch_reduction(const ReductionTask<float>&, cudaStream_t);
template cudaError_t launch_reduction(const ReductionTask<double>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<float>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<double>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<__nv_bfloat16>&, cudaStream_t);
template cudaError_t launch_scaled_copy(const ScaledCopyTask<float, float>&, cudaStream_t);
template cudaError_t launch_scaled_copy(const ScaledCopyTask<double, double>&, cudaStream_t);
template cudaError_t launch_scaled_copy(const ScaledCopyTask<float, __half>&, cudaStream_t);
template cudaError_t launch_scaled_copy(const ScaledCopyTask<float, __nv_bfloat16>&, cudaStream_t);
template cudaError_t launch_scaled_copy(const ScaledCopyTask<__nv_bfloat16, __nv_bfloat16>&, cudaStream_t);
template cudaError_t launch_add(const float*, float*, int64_t, cudaStream_t);
template cudaError_t launch_add(const double*, double*, int64_t, cudaStream_t);

}  // namespace cw_cuda
