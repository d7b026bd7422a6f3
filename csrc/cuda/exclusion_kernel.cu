// Which shared negatives a row leaves out, and the columns of each item.
#include <limits>

#include "known_items.cuh"
#include "pair_ids.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// A warp takes a row, each lane a known item.
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

__global__ void __launch_bounds__(kThreads) column_keys_kernel(const int64_t* ids, const SortedPairs sorted) {
  const Pairs negatives{nullptr, nullptr, ids, true, 0, sorted.count, sorted.num_items};
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= sorted.count) return;
  const int64_t id = negative_id(negatives, 0, c);
  sorted.unsorted_keys[c] = uint32_t(id < 0 ? sorted.num_items : id);
  sorted.unsorted_places[c] = uint32_t(c);
}

__global__ void __launch_bounds__(kThreads) column_lists_kernel(const ColumnListTask task) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= task.n) return;
  const uint32_t key = task.keys[i];
  const bool goes_on = i + 1 < task.n && task.keys[i + 1] == key && key < task.num_items;
  task.next_column[task.columns[i]] = goes_on ? int32_t(task.columns[i + 1]) : -1;
  if (key < task.num_items && (i == 0 || task.keys[i - 1] != key)) task.first_column[key] = int32_t(task.columns[i]);
}

__global__ void __launch_bounds__(kThreads) catalogue_kernel(const CatalogueTask task) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= task.num_items) return;
  task.ids[i] = i;
  task.first_column[i] = int32_t(i);
  task.next_column[i] = -1;
}

}  // namespace

template <typename T>
cudaError_t launch_exclusion(const ExclusionTask<T>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  const int64_t blocks = blocks_of(task.rows, kWarps);
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  return launch_kernel(exclusion_kernel<T>, unsigned(blocks), kThreads, 0, stream, task);
}

// Columns have 31 bits, so that these grids are never too large.
cudaError_t launch_column_keys(const int64_t* ids, const SortedPairs& pairs, cudaStream_t stream) {
  if (pairs.count == 0) return cudaSuccess;
  return launch_kernel(column_keys_kernel, grid_of(pairs.count, kThreads), kThreads, 0, stream, ids, pairs);
}

cudaError_t launch_column_lists(const ColumnListTask& task, cudaStream_t stream) {
  if (task.n == 0) return cudaSuccess;
  return launch_kernel(column_lists_kernel, grid_of(task.n, kThreads), kThreads, 0, stream, task);
}

cudaError_t launch_catalogue(const CatalogueTask& task, cudaStream_t stream) {
  if (task.num_items == 0) return cudaSuccess;
  return launch_kernel(catalogue_kernel, grid_of(task.num_items, kThreads), kThreads, 0, stream, task);
}

template cudaError_t launch_exclusion(const ExclusionTask<float>&, cudaStream_t);
template cudaError_t launch_exclusion(const ExclusionTask<double>&, cudaStream_t);

}  // namespace cw_cuda
