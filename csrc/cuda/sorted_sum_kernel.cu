// The other way to a sum per item: the pairs sorted by item, so that each sum is a run of neighbours, in an order that only
// the ids and sizes decide. A group of lanes takes a span of sorted pairs, of any items: popular items are
// shared among many groups, rare ones share a group. A run within a span is written where it belongs; the parts of one that
// crosses into the next are carried, and a second kernel adds them up.
#include "pair_ids.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr uint32_t kNone = 0xffffffffu;  // the key of a place beyond the pairs

template <typename T>
__global__ void __launch_bounds__(kThreads) sort_keys_kernel(const ItemSumTask<T> task, int64_t first,
                                                             const SortedPairs pairs) {
  const int64_t width = 1 + task.pairs.m + task.pairs.n;
  const int64_t count = task.rows * width;
  for (int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x; p < count; p += int64_t(gridDim.x) * kThreads) {
    const int64_t b = uint32_t(p) / uint32_t(width);
    // The source of a pair without weight may hold anything.
    const int64_t id = coefficient_of(task, p) == T(0) ? -1 : pair_id(task.pairs, b, p - b * width);
    pairs.unsorted_keys[first + p] = uint32_t(id < 0 ? task.pairs.num_items : id);
    pairs.unsorted_places[first + p] = uint32_t(first + p);
  }
}

// Sorted pairs [begin, end), and whether the run at either end goes on beyond it.
template <typename T>
struct Span {
  int64_t begin;
  int64_t end;

  __device__ Span(const SortedSumTask<T>& task, int64_t index) {
    begin = index * task.span < task.count ? index * task.span : task.count;
    end = begin + task.span < task.count ? begin + task.span : task.count;
  }
  __device__ bool empty() const { return begin == end; }
  __device__ bool came_in(const SortedSumTask<T>& task) const {
    return begin > 0 && task.keys[begin - 1] == task.keys[begin];
  }
  __device__ bool goes_on(const SortedSumTask<T>& task) const {
    return end < task.count && task.keys[end] == task.keys[end - 1];
  }
};

template <int V, typename T>
__device__ __forceinline__ void write_sum(const SortedSumTask<T>& task, uint32_t key, int64_t chunk, T (&sum)[V]) {
  T* const to = task.sum + int64_t(key) * task.dim + chunk * V;
  if (task.accumulate) {
    T before[V];
    load<V>(to, before);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += before[v];
  }
  store<V>(sum, to);
}

// What a span carries [2, D]: of the run that came in, and of the one that goes on without having come in.
template <int V, typename T>
__device__ __forceinline__ T* carried(const SortedSumTask<T>& task, int64_t span, int which, int64_t chunk) {
  return task.carry + (2 * span + which) * task.dim + chunk * V;
}

// Blocks that a multiprocessor's registers must hold: as many as go without spilling.
template <typename T>
constexpr int kResident = sizeof(T) == 4 ? 3 : 2;

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kResident<T>) span_sum_kernel(const SortedSumTask<T> task) {
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const int64_t index = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * lanes.count + lanes.group;
  const Span<T> span(task, index);
  const uint32_t width = uint32_t(task.width), own_pairs = uint32_t(task.rows * task.width);
  const uint64_t dim = uint64_t(task.dim);
  const int first_lane = lanes.group * lanes.size;

  for (int64_t tile = 0; tile < chunks; tile += lanes.size) {
    const int64_t chunk = tile + lanes.rank;
    const bool has_chunk = chunk < chunks;
    const T* const sources = task.sources + (has_chunk ? chunk * V : 0);
    uint32_t current = span.empty() ? kNone : task.keys[span.begin];
    bool came_in = !span.empty() && span.came_in(task);
    T sum[V] = {};
    const auto finish_run = [&](bool goes_on) {
      if (current >= task.num_items || !has_chunk) return;  // padding
      if (came_in || goes_on) {
        store<V>(sum, carried<V>(task, index, came_in ? 0 : 1, chunk));
      } else {
        write_sum<V>(task, current, chunk, sum);
      }
    };

    for (int first = 0; first < task.span; first += lanes.size) {
      // Each lane looks up one pair; the group then takes them in turn.
      const int64_t p = span.begin + first + lanes.rank;
      uint32_t key = kNone, source = 0;
      T coefficient = T(0);
      if (p < span.end) {
        key = task.keys[p];
        const uint32_t place = task.places[p];
        const bool own = place < own_pairs;
        source = own ? place / width : uint32_t(task.further) + (place - own_pairs);
        coefficient = own ? (key < task.num_items ? task.coefficients[place] : T(0)) : T(1);
      }
      for (int done = 0; done < lanes.size; done += kInFlight) {
        Chunk<T, V> x[kInFlight];
        uint32_t keys[kInFlight];
        T weights[kInFlight];
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
          const int from = first_lane + ((done + r) & (lanes.size - 1));
          const uint32_t row = __shfl_sync(kAllLanes, source, from);
          weights[r] = __shfl_sync(kAllLanes, coefficient, from);
          const uint32_t its_key = __shfl_sync(kAllLanes, key, from);
          keys[r] = done + r < lanes.size ? its_key : kNone;
          // Without a condition, which would make each load wait for the one before: what padding reads is dropped.
          x[r] = load_chunk<V>(sources + row * dim);
        }
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
          if (keys[r] == kNone) continue;
          if (keys[r] != current) {
            finish_run(false);
            current = keys[r];
            came_in = false;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] = T(0);
          }
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += weights[r] * x[r].x[v];
        }
      }
    }
    if (!span.empty()) finish_run(span.goes_on(task));
  }
}

// A group of lanes takes a span in which a run begins that goes on: its part, and those of the spans that it goes on to.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) carried_sum_kernel(const SortedSumTask<T> task) {
  const int64_t chunks = task.dim / V;
  const Lanes lanes(chunks);
  const int64_t index = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * lanes.count + lanes.group;
  const Span<T> span(task, index);
  if (span.empty() || !span.goes_on(task)) return;
  const uint32_t key = task.keys[span.end - 1];
  if (key >= task.num_items) return;
  if (span.came_in(task) && task.keys[span.begin] == key) return;  // it began earlier
  const int64_t spans = blocks_of(task.count, task.span);

  for (int64_t chunk = lanes.rank; chunk < chunks; chunk += lanes.size) {
    // Of very many spans: what an addition rounds away (Knuth's TwoSum) is added at the end.
    T sum[V], lost[V] = {};
    load<V>(carried<V>(task, index, 1, chunk), sum);
    bool goes_on = true;
    for (int64_t next = index + 1; goes_on; next += kInFlight) {
      // Read ahead, without a condition: what lies beyond the run is not used.
      T x[kInFlight][V];
      bool has_more[kInFlight];
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        const int64_t ahead = next + r < spans ? next + r : spans - 1;
        const Span<T> other(task, ahead);
        has_more[r] = other.end < task.count && task.keys[other.end] == key;
        load<V>(carried<V>(task, ahead, 0, chunk), x[r]);
      }
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        if (!goes_on) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const T before = sum[v];
          sum[v] = before + x[r][v];
          const T added = sum[v] - before;
          lost[v] += (before - (sum[v] - added)) + (x[r][v] - added);
        }
        goes_on = has_more[r];
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += lost[v] - lost[v] == T(0) ? lost[v] : T(0);  // not beside ∞
    write_sum<V>(task, key, chunk, sum);
  }
}

template <typename T, int V>
cudaError_t launch_spans(const SortedSumTask<T>& task, cudaStream_t stream) {
  const int64_t chunks = task.dim / V;
  int64_t lanes = 1;
  while (lanes < chunks && lanes < kWarp) lanes *= 2;
  const int64_t blocks = blocks_of(blocks_of(task.count, task.span), kWarps * (kWarp / lanes));
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  if (const auto error = launch_kernel(span_sum_kernel<T, V>, unsigned(blocks), kThreads, 0, stream, task)) return error;
  return launch_kernel(carried_sum_kernel<T, V>, unsigned(blocks), kThreads, 0, stream, task);
}

}  // namespace

template <typename T>
cudaError_t launch_sort_keys(const ItemSumTask<T>& task, int64_t first, const SortedPairs& pairs, cudaStream_t stream) {
  const int64_t count = task.rows * (1 + task.pairs.m + task.pairs.n);
  if (count == 0) return cudaSuccess;
  return launch_kernel(sort_keys_kernel<T>, grid_of(count, kThreads), kThreads, 0, stream, task, first, pairs);
}

int span_of(int64_t count) {
  // Enough spans to fill a large GPU; beyond that the longer, the less is carried.
  constexpr int64_t kSpans = 8192;
  constexpr int kShortest = 32, kLongest = 256;
  int span = kShortest;
  while (span < kLongest && int64_t(span) * 2 * kSpans <= count) span *= 2;
  return span;
}

template <typename T>
cudaError_t launch_sorted_sum(const SortedSumTask<T>& task, cudaStream_t stream) {
  if (task.count == 0) return cudaSuccess;
  constexpr int kVec = kVectorBytes / int(sizeof(T));
  const bool vectorizable = rows_are_aligned(task.sources, task.dim) && is_aligned(task.sum) && is_aligned(task.carry);
  return vectorizable ? launch_spans<T, kVec>(task, stream) : launch_spans<T, 1>(task, stream);
}

#define CW_INSTANTIATE(T)                                                                                      \
  template cudaError_t launch_sort_keys(const ItemSumTask<T>&, int64_t, const SortedPairs&, cudaStream_t);     \
  template cudaError_t launch_sorted_sum(const SortedSumTask<T>&, cudaStream_t);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)

}  // namespace cw_cuda
