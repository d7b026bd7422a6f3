// A query against items that are looked up by their ids: a block takes a query, and reads each item row once.
#pragma once

#include "pair_ids.cuh"

namespace cw_cuda {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// Blocks that a multiprocessor's registers must hold: as many as go without spilling.
template <typename In>
constexpr int kResident = sizeof(In) == 4 ? 3 : sizeof(In) == 2 ? 2 : 1;

// unit [dim], shared, = the query over its norm (for dot: unchanged), and the same to `kept` [dim] unless it is null. Returns
// the factor. `sums` [kWarps] is shared; ends with a barrier.
template <typename In, typename T>
__device__ __forceinline__ T load_unit_query(const In* query, int64_t dim, bool normalized, T* unit, T* kept, T* sums) {
  T squared = T(0);
#pragma unroll 1
  for (int64_t d = threadIdx.x; d < dim; d += kThreads) {
    const T value = to_compute(query[d]);
    unit[d] = value;
    squared += value * value;
  }
  squared = Team<kWarps>::sum(squared, sums);
  const T inverse = normalized ? inverse_norm(squared) : T(1);
#pragma unroll 1
  for (int64_t d = threadIdx.x; d < dim; d += kThreads) {
    unit[d] *= inverse;
    if (kept) kept[d] = unit[d];
  }
  __syncthreads();
  return inverse;
}

// One thread calls take(c, id, q·x, 1/|x|) for each place c in [0, width), x being the row of id = id_at(c); 1 in the place of
// 1/|x| where nothing is normalised. For an id of −1, x is row 0.
template <int V, typename In, typename T, typename IdAt, typename Take>
__device__ __forceinline__ void score_items(const In* items, int64_t dim, bool normalized, const Lanes& lanes,
                                            const T* unit_query, int64_t width, IdAt&& id_at, Take&& take) {
  const int warp = int(threadIdx.x) / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t chunks = dim / V;
  for (int64_t first = int64_t(warp) * kWarp; first < width; first += kThreads) {
    // Each lane looks up one id; the groups then take the items in turn.
    const int64_t looked_up = first + lane < width ? id_at(first + lane) : -1;
    for (int done = 0; done < kWarp; done += kInFlight * lanes.count) {
      int64_t id[kInFlight];
      T dot[kInFlight] = {};
      T squared[kInFlight] = {};
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        const int from = done + r * lanes.count + lanes.group;
        const int64_t shuffled = __shfl_sync(kAllLanes, looked_up, from % kWarp);
        id[r] = from < kWarp ? shuffled : -1;
      }
      for (int64_t chunk = lanes.rank; chunk < chunks; chunk += lanes.size) {
        Chunk<In, V> x[kInFlight];
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
          // Padding reads row 0. Without a condition, which would make each load wait for the one before.
          x[r] = load_chunk<V>(items + (id[r] >= 0 ? id[r] : 0) * dim + chunk * V);
        }
        T q[V];
        load<V>(unit_query + chunk * V, q);
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const T value = to_compute(x[r].x[v]);
            dot[r] += q[v] * value;
            squared[r] += value * value;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        const T product = lanes.sum_in_group(dot[r]);
        const T norm = lanes.sum_in_group(squared[r]);
        const int from = done + r * lanes.count + lanes.group;
        const int64_t c = first + from;
        if (lanes.rank == 0 && from < kWarp && c < width) {
          take(c, id[r], product, normalized ? inverse_norm(norm) : T(1));
        }
      }
    }
  }
}

}  // namespace cw_cuda
