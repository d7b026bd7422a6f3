// Negatives drawn by the rule of negative_sampling.h. A thread takes the places of one Philox counter: nearly all first
// attempts are accepted, and the few others are drawn again one by one.
#include "known_items.cuh"

namespace cw_cuda {

namespace {

using namespace CW_NAMESPACE;

constexpr int kThreads = 256;
// Blocks per multiprocessor. With a fourth on the newest GPUs nvcc 13 would spill registers to memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocks = 3;
#else
constexpr int kBlocks = 4;
#endif

// Which of `items` are known, as bits. All are searched in the same steps, so that their loads take no longer than those of
// a single one.
template <int V>
__device__ __forceinline__ unsigned found_in(const KnownItems& known, const int32_t (&items)[V]) {
  if (known.count == 0) return 0;
  uint32_t base[V] = {};  // a query has fewer than 2³¹ known items
  for (uint32_t left = uint32_t(known.count); left > 1;) {
    const uint32_t half = left / 2;
#pragma unroll
    for (int v = 0; v < V; ++v) base[v] += known.items[base[v] + half] <= items[v] ? half : 0;
    left -= half;
  }
  unsigned found = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) found |= unsigned(known.items[base[v]] == items[v]) << v;
  return found;
}

// Rare and long: a separate call, which looks up again what it needs, so that it takes no registers from the rest.
template <typename T>
__attribute__((noinline)) __device__ int32_t drawn_on(const DrawTask<T>& task, int64_t batch_row, int64_t j) {
  const NegativeSource& source = task.source;
  const KnownItems known = checked_known_items(source, task.num_known, batch_row);
  return item_at(source, draw(source, known, excess_of(source.num_items), uint64_t(*source.seed),
                              source.row_offset + batch_row, j, 1));
}

// V places per counter: 4 of uniform negatives, 2 of popular ones.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) draw_kernel(const __grid_constant__ DrawTask<T> task, uint32_t excess) {
  const uint64_t counters = uint64_t(blocks_of(task.n, V)), t = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  const uint64_t r = t / counters;
  if (r >= uint64_t(task.rows)) return;
  const int64_t batch_row = task.first_row + int64_t(r), first = int64_t(uint32_t(t - r * counters)) * V;
  if (is_padding(task.source, batch_row)) {
    for (int64_t j = first; j < first + V && j < task.n; ++j) {
      task.ids[r * task.n + j] = -1;
      if (task.log_q) task.log_q[r * task.n + j] = T(0);
    }
    return;
  }
  const uint64_t seed = uint64_t(*task.source.seed);
  const KnownItems known = checked_known_items(task.source, task.num_known, batch_row);
  const int64_t row = task.source.row_offset + batch_row;

  NegativeSource source = task.source;
  if constexpr (V == 4) source.thresholds = nullptr;  // as it is; now the compiler knows
  int32_t ids[V];  // `first | v`: so the compiler sees that all are of one counter
#pragma unroll
  for (int v = 0; v < V; ++v) ids[v] = attempt_of(source, excess, seed, row, first | v, 0);
  unsigned rejected = found_in(known, ids);
#pragma unroll
  for (int v = 0; v < V; ++v) rejected |= unsigned(ids[v] < 0) << v;
  const int here = int(task.n - first < V ? task.n - first : V);
  rejected &= (1u << here) - 1;
#pragma unroll
  for (int v = 0; v < V; ++v) ids[v] = item_at(task.source, ids[v]);

  const int64_t to = int64_t(r) * task.n + first;
  T log_q[V] = {};
  if (task.log_q) {
#pragma unroll
    for (int v = 0; v < V; ++v) log_q[v] = task.log_weights[ids[v] < 0 ? 0 : ids[v]];
  }
  if (task.n % V == 0 && is_aligned(task.ids) && is_aligned(task.log_q)) {
    store<V>(ids, task.ids + to);
    if (task.log_q) store<V>(log_q, task.log_q + to);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v >= here) continue;
      task.ids[to + v] = ids[v];
      if (task.log_q) task.log_q[to + v] = log_q[v];
    }
  }
#pragma unroll 1
  for (; rejected != 0; rejected &= rejected - 1) {
    const int v = __ffs(int(rejected)) - 1;
    const int32_t id = drawn_on(task, batch_row, first + v);
    task.ids[to + v] = id;
    if (task.log_q) task.log_q[to + v] = id < 0 ? T(0) : task.log_weights[id];
  }
}

}  // namespace

template <typename T>
cudaError_t launch_draw(const DrawTask<T>& task, cudaStream_t stream) {
  const bool popular = task.source.thresholds != nullptr;
  const int64_t blocks = blocks_of(task.rows * blocks_of(task.n, popular ? 2 : 4), kThreads);
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  return launch_kernel(popular ? draw_kernel<T, 2> : draw_kernel<T, 4>, unsigned(blocks), kThreads, 0, stream, task,
                       excess_of(task.source.num_items));
}

template cudaError_t launch_draw(const DrawTask<float>&, cudaStream_t);
template cudaError_t launch_draw(const DrawTask<double>&, cudaStream_t);

}  // namespace cw_cuda
