// The pairs of the embeddings ops: their ids, and sums over the rows with these ids.
#pragma once

#undef NDEBUG  // the check of ids must stay in every build
#include <cassert>

#include "warp.cuh"

namespace cw_cuda {

// −1 is padding. An id out of range stops the kernel with a message; should it run on, the id counts as padding.
#define CW_CHECKED_ID(name, value, num_items)                                                         \
  do {                                                                                                \
    const int64_t checked = (value);                                                                  \
    assert(checked >= -1 && checked < num_items && name " must be in [0, items), or -1 for padding"); \
    id = checked < num_items ? checked : -1;                                                          \
  } while (false)

__device__ __forceinline__ int64_t id_at(const void* ids, bool wide, int64_t place) {
  return wide ? static_cast<const int64_t*>(ids)[place] : static_cast<const int32_t*>(ids)[place];
}

// The id as it is in the tensor. It is checked separately, so that it can be read ahead: a check waits for its operand.
__device__ __forceinline__ int64_t unchecked_negative_id(const Pairs& pairs, int64_t b, int64_t j) {
  return id_at(pairs.neg_ids, pairs.wide_neg_ids, b * pairs.n + j);
}

__device__ __forceinline__ int64_t checked_negative_id(const Pairs& pairs, int64_t unchecked) {
  int64_t id;
  CW_CHECKED_ID("neg_ids", unchecked, pairs.num_items);
  return id;
}

__device__ __forceinline__ int64_t negative_id(const Pairs& pairs, int64_t b, int64_t j) {
  return checked_negative_id(pairs, unchecked_negative_id(pairs, b, j));
}

// The item of pair c of row b; negative: padding.
__device__ __forceinline__ int64_t pair_id(const Pairs& pairs, int64_t b, int64_t c) {
  if (c > pairs.m) return negative_id(pairs, b, c - 1 - pairs.m);
  int64_t id;
  if (c == 0) {
    CW_CHECKED_ID("pos_ids", pairs.pos_ids[b], pairs.num_items);
  } else {
    CW_CHECKED_ID("extra_pos_ids", pairs.extra_ids[b * pairs.m + c - 1], pairs.num_items);
  }
  return id;
}

template <typename In>
__device__ __forceinline__ int64_t candidate_id(const CandidateScoresTask<In>& task, int64_t place) {
  int64_t id;
  CW_CHECKED_ID("ids", id_at(task.ids, task.wide_ids, place), task.num_items);
  return id;
}

#undef CW_CHECKED_ID

template <typename T>
__device__ __forceinline__ T coefficient_of(const ItemSumTask<T>& task, int64_t place) {
  return task.coefficients ? task.coefficients[place] : T(1);
}

// One term of a sum of rows.
template <typename T>
struct Term {
  T weight;  // 0: the row is ignored, and may hold anything
  int64_t row;
};

// How many rows a group of lanes loads before it uses the first.
constexpr int kInFlight = 4;

// sum [dim] in shared memory = Σ_e weight(e)·rows[row(e)], over terms e in [0, count), by the whole block. The order of
// the additions depends only on the sizes. `partial` is shared; ends with a barrier.
template <int kWarps, int V, typename E, typename T, typename TermOf>
__device__ __forceinline__ void weighted_sum(const E* rows, int64_t count, int64_t dim, const Lanes& lanes,
                                             TermOf&& term_of_place, T (&partial)[kWarps][kWarp * V], T* sum) {
  const int warp = int(threadIdx.x) / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t chunks = dim / V;
  for (int64_t tile = 0; tile < chunks; tile += lanes.size) {
    const int64_t chunk = tile + lanes.rank;
    const bool has_chunk = chunk < chunks;
    T own[V] = {};
    for (int64_t first = int64_t(warp) * kWarp; first < count; first += kWarps * kWarp) {
      // Each lane looks up one term; the groups then take the terms in turn.
      Term<T> looked_up{T(0), 0};
      if (first + lane < count) looked_up = term_of_place(first + lane);
      for (int done = 0; done < kWarp; done += kInFlight * lanes.count) {
        Chunk<E, V> x[kInFlight];
        T weight[kInFlight];
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
          const int from = done + r * lanes.count + lanes.group;
          const T shuffled = __shfl_sync(kAllLanes, looked_up.weight, from % kWarp);
          const int64_t row = __shfl_sync(kAllLanes, looked_up.row, from % kWarp);
          weight[r] = from < kWarp && has_chunk ? shuffled : T(0);
          // Without a condition, which would make each load wait for the one before.
          x[r] = load_chunk<V>(rows + row * dim + (has_chunk ? chunk : 0) * V);
        }
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
#pragma unroll
          for (int v = 0; v < V; ++v) own[v] += weight[r] == T(0) ? T(0) : weight[r] * to_compute(x[r].x[v]);
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      own[v] = lanes.sum_over_groups(own[v]);
      if (lanes.group == 0) partial[warp][lanes.rank * V + v] = own[v];
    }
    __syncthreads();
    const int64_t left = (chunks - tile) * V;
    const int width = int(left < lanes.size * V ? left : lanes.size * V);
    for (int d = int(threadIdx.x); d < width; d += kWarps * kWarp) {
      T total = T(0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += partial[w][d];
      sum[tile * V + d] = total;
    }
    __syncthreads();
  }
}

}  // namespace cw_cuda
