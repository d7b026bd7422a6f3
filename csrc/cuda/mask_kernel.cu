// Which shared negatives a row leaves out. A warp takes a row, each lane a known item.
#include <limits>

#include "known_items.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

template <typename T>
__global__ void __launch_bounds__(kThreads) exclusion_kernel(const ExclusionTask<T> task) {
  const int64_t b = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  if (b >= task.rows) return;
  T* const values = task.values + b * task.n;
  const auto leave_out = [&](int64_t item) {
    int count = 0;
    if (item < 0 || item >= task.num_items) return count;
    for (int32_t column = task.first_column[item]; column >= 0; column = task.next_column[column]) {
      values[column] = -std::numeric_limits<T>::infinity();
      ++count;
    }
    return count;
  };
  const int64_t pos_id = task.pos_ids[b];
  int count = 0;
  if (pos_id >= 0) {
    const KnownItems known = checked_known_items(task.source, task.num_known, b);
    for (int64_t k = lane; k < known.count; k += kWarp) count += leave_out(known.items[k]);
    if (lane == 0 && !(pos_id < task.num_items && known.contains(int32_t(pos_id)))) count += leave_out(pos_id);
  }
  if (!task.excluded) return;
  count = Team<1>::sum(count, static_cast<int*>(nullptr));
  if (lane == 0) task.excluded[b] = count;
}

}  // namespace

template <typename T>
cudaError_t launch_exclusion(const ExclusionTask<T>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  const int64_t blocks = blocks_of(task.rows, kWarps);
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  return launch_kernel(exclusion_kernel<T>, unsigned(blocks), kThreads, 0, stream, task);
}

template cudaError_t launch_exclusion(const ExclusionTask<float>&, cudaStream_t);
template cudaError_t launch_exclusion(const ExclusionTask<double>&, cudaStream_t);

}  // namespace cw_cuda
