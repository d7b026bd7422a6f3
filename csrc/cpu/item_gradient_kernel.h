// The gradient of the item table, from sorted pairs. Included by kernels_impl.h.
#pragma once

#include "gather.h"
#include "long_sums.h"

namespace cw_cpu {
namespace CW_ISA {

// Elements of a gradient's row handled at a time: those of a bucket, and those of a block's sources, stay in L1.
constexpr int64_t kSlice = 64;

// to [vectors] += factor · from
template <typename T>
CW_INLINE void add_scaled(T* to, const T* from, T factor, int vectors) {
  for (int v = 0; v < vectors; ++v) {
    const Lanes<T> sum = load_vector<Lanes<T>>(to + v * kLanes<T>) + load_vector<Lanes<T>>(from + v * kLanes<T>) * factor;
    store_vector(to + v * kLanes<T>, sum);
  }
}

// A new sum is begun after this many pairs of a bucket per item among them, which bounds the rounding errors of a sum; and
// after this many pairs in any case, in case one item has most of them.
constexpr int64_t kPairsPerSum = 256;
constexpr int64_t kMostPairsPerSum = 4096;

// The sums [kItemsPerBucket, padded_dim] of bucket k, elements [slice, slice + vectors·kLanes). `carried`: the items whose
// sums already have a high part; updated. Returns which items have a pair with a weight.
template <typename In, typename T>
CW_INLINE uint64_t add_bucket(const ItemGradientTask<In>& task, int64_t k, int64_t slice, int vectors,
                              const LongSums<T>& sums, uint64_t& carried) {
  const PairGrid& grid = task.grid;
  const int64_t padded_dim = task.padded_dim;
  const T* const coefficients = task.coefficients;
  const PairKey* const keys = task.keys;
  T* const first_sum = sums.sum + slice;
  uint64_t weighed = 0, fresh = 0;  // items with a weight at all, and in the latest sum
  int64_t pairs = 0, check = kPairsPerSum, blocks_left = grid.blocks_at_once;
  const auto carry = [&]() CW_INLINE_LAMBDA {
    for (uint64_t left = fresh; left != 0; left &= left - 1) {
      const int64_t item = __builtin_ctzll(left), place = item * padded_dim + slice;
      carry_over(LongSums<T>{sums.sum + place, sums.high + place, sums.low + place}, !(carried >> item & 1), vectors);
    }
    weighed |= fresh;
    carried |= fresh;
    fresh = 0;
    pairs = 0;
    check = kPairsPerSum;
  };
  for (int64_t block = 0; block < grid.blocks; ++block) {
    const int32_t* const ends = task.ends + block * grid.buckets;
    const int64_t base = block * grid.pairs_per_block();
    const int64_t last = base + ends[k];
    const T* const sources = task.sources + block * grid.rows_per_block * padded_dim + slice;
    if (block + 1 < grid.blocks) {
      const int64_t next = base + grid.pairs_per_block() + (k > 0 ? ends[grid.buckets + k - 1] : 0);
      __builtin_prefetch(task.keys + next);
      __builtin_prefetch(task.coefficients + next);
    }
    int64_t e = base + (k > 0 ? ends[k - 1] : 0);
    while (e < last) {
      const int64_t stop = last - e < check - pairs ? last : e + (check - pairs);
      pairs += stop - e;
      uint64_t met = 0;  // in a register: `fresh` is written to in carry()
      for (; e < stop; ++e) {
        const T factor = coefficients[e];
        if (factor == T(0)) continue;  // its source may hold NaN
        const PairKey key = keys[e];
        const int item = item_of(key);
        T* const to = first_sum + item * padded_dim;
        const T* const from = sources + row_of(key) * padded_dim;
        met |= uint64_t(1) << item;
        if (vectors == kSlice / kLanes<T>) {
          add_scaled(to, from, factor, int(kSlice / kLanes<T>));
        } else {
          add_scaled(to, from, factor, vectors);
        }
      }
      fresh |= met;
      if (pairs < check) continue;
      if (pairs >= kMostPairsPerSum || pairs >= kPairsPerSum * __builtin_popcountll(fresh)) {
        carry();
      } else {
        check += kPairsPerSum;
      }
    }
    // Where the sampled op begins another part, so that the sums are the same whether the ids are given or drawn.
    if (--blocks_left == 0) {
      blocks_left = grid.blocks_at_once;
      if (block + 1 < grid.blocks) carry();
    }
  }
  if (carried != 0 || task.after_high) carry();
  return weighed | fresh;
}

// An item's gradient from its sum, through the normalisation where there is one. A function of its own: within the kernel
// GCC does not vectorise the sums over a row.
template <typename In, typename T>
CW_NOINLINE void write_gradient(const T* sum, const In* item, int64_t dim, bool normalized, In* target) {
  T squared = 0, along = 0, inverse = 1;  // `along`: the component along the item
  if (normalized) {
#pragma omp simd reduction(+ : squared)
    for (int64_t d = 0; d < dim; ++d) squared += T(load(item[d])) * T(load(item[d]));
    inverse = inverse_norm(squared);
#pragma omp simd reduction(+ : along)
    for (int64_t d = 0; d < dim; ++d) along += T(load(item[d])) * inverse * sum[d];
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) store(inverse * (sum[d] - along * (T(load(item[d])) * inverse)), target[d]);
    return;
  }
#pragma omp simd
  for (int64_t d = 0; d < dim; ++d) store(sum[d], target[d]);
}

template <typename In>
CW_INLINE void prefetch_row(const In* row, int64_t dim) {
  const char* const bytes = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < dim * int64_t(sizeof(In)); i += 64) __builtin_prefetch(bytes + i);
}

// scratch: item_gradient_scratch(dim). Buckets [begin, end): each belongs to one thread and goes through its pairs in the
// order of their rows, so the order of the sums does not depend on the threads.
template <typename In>
void item_gradient(const ItemGradientTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  const int64_t dim = task.dim, padded_dim = task.padded_dim, room = kItemsPerBucket * padded_dim;
  const LongSums<T> sums{scratch, scratch + room, scratch + 2 * room};
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first_item = k * kItemsPerBucket;
    const int64_t items = task.num_items - first_item < kItemsPerBucket ? task.num_items - first_item : kItemsPerBucket;
    fill(sums.sum, room, T(0));
    uint64_t weighed = 0;  // which of the bucket's items have a sum that may not be 0
    uint64_t carried_before = 0, carried = 0;
    for (int64_t i = 0; task.before_high && i < items; ++i) {
      const T* const high = task.before_high + (first_item + i) * dim;
      const T* const low = task.before_low ? task.before_low + (first_item + i) * dim : nullptr;
      T any = 0;
#pragma omp simd reduction(+ : any)
      for (int64_t d = 0; d < dim; ++d) {
        any += high[d] == T(0) ? T(0) : T(1);
        sums.high[i * padded_dim + d] = high[d];
      }
      fill(sums.high + i * padded_dim + dim, padded_dim - dim, T(0));
      fill(sums.low + i * padded_dim, padded_dim, T(0));
      for (int64_t d = 0; low && d < dim; ++d) sums.low[i * padded_dim + d] = low[d];
      weighed |= uint64_t(any != T(0)) << i;
      carried_before |= uint64_t(1) << i;
    }
    for (int64_t slice = 0; slice < padded_dim; slice += kSlice) {
      carried = carried_before;
      if (padded_dim - slice >= kSlice) {
        weighed |= add_bucket(task, k, slice, int(kSlice / kLanes<T>), sums, carried);
      } else {
        weighed |= add_bucket(task, k, slice, int((padded_dim - slice) / kLanes<T>), sums, carried);
      }
    }
    for (int64_t i = 0; i < items; ++i) {
      T* const sum = sums.sum + i * padded_dim;
      T* const high = sums.high + i * padded_dim;
      T* const low = sums.low + i * padded_dim;
      const bool has_carried = carried >> i & 1;
      const int64_t place = (first_item + i) * dim;
      if (task.after_high) {
        // An item without a pair has 0 in its latest sum.
        const T* const from_high = has_carried ? high : sum;
        const T* const from_low = has_carried ? low : sum;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) task.after_high[place + d] = from_high[d];
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) task.after_low[place + d] = from_low[d];
        continue;
      }
      if (has_carried) add_low(LongSums<T>{sum, high, low}, dim, sum);
      if (task.normalized && task.item_ids && first_item + i + kItemsPerBucket < task.num_items) {
        // Rows with gaps between them, which the processor does not foresee: those of the next bucket.
        prefetch_row(task.items + task.item_ids[first_item + i + kItemsPerBucket] * dim, dim);
      }
      const In* const item = task.item_ids ? task.items + task.item_ids[first_item + i] * dim : task.items + place;
      write_gradient(sum, item, dim, task.normalized && (weighed >> i & 1), task.gradient + place);
    }
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
