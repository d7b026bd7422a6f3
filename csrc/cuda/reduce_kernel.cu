// What is done with the rows' results: their losses reduced to one number, their gradients scaled in place.
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

}  // namespace

template <typename T>
cudaError_t launch_reduction(const ReductionTask<T>& task, cudaStream_t stream) {
  return launch_kernel(reduction_kernel<T>, 1, kReducingThreads, 0, stream, task);
}

template <typename E>
cudaError_t launch_scale(const ScaleTask<E>& task, cudaStream_t stream) {
  constexpr int64_t kPerBlock = kScalingThreads * kVectorBytes / int(sizeof(E));
  const int64_t blocks = (task.rows * task.width + kPerBlock - 1) / kPerBlock;
  if (blocks == 0) return cudaSuccess;
  return launch_kernel(scale_kernel<E>, unsigned(blocks < kScalingGrid ? blocks : kScalingGrid), kScalingThreads, 0,
                       stream, task);
}

template cudaError_t launch_reduction(const ReductionTask<float>&, cudaStream_t);
template cudaError_t launch_reduction(const ReductionTask<double>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<float>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<double>&, cudaStream_t);
template cudaError_t launch_scale(const ScaleTask<__nv_bfloat16>&, cudaStream_t);

}  // namespace cw_cuda
