// The pairs (row, item) of a batch, sorted for the gradient of the item table.
//
// Computed row by row, that gradient would be a scattered read-modify-write of the whole table. So the forward pass sorts the
// pairs, block by block: a block is some rows, and its pairs are grouped by buckets of items, within a bucket in the order of
// the rows. The backward pass takes one bucket at a time through all blocks; the bucket's gradients and the block's source
// rows both fit into L1. A pair is a 16-bit key and a coefficient.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cw_cpu {

using PairKey = uint16_t;

constexpr int kItemBits = 6;
constexpr int64_t kItemsPerBucket = int64_t(1) << kItemBits;
constexpr int64_t kMaxRowsPerBlock = int64_t(1) << (16 - kItemBits);
// So that a block's scattered writes stay in L2.
constexpr int64_t kPairsPerBlock = 16384;
constexpr int64_t kPairsPerEnd = 4;
constexpr int64_t kEnoughBlocks = 128;
// How many pairs the sampled op handles at a time, 12 MB; more if the table is large, as each time all of it is read, or if a
// row is longer than that.
constexpr int64_t kPairsAtOnce = int64_t(1) << 21;
constexpr int64_t kPairsAtOncePerItem = 4;
constexpr int64_t kFewestBlocksAtOnce = 32;

static inline PairKey pair_key(int64_t row_in_block, int64_t item) {
  return PairKey(row_in_block << kItemBits | (item & (kItemsPerBucket - 1)));
}
static inline int item_of(PairKey key) { return key & (kItemsPerBucket - 1); }
static inline int row_of(PairKey key) { return key >> kItemBits; }

// The number of blocks and buckets: cw_ext/fake.py has the same rule. It must not depend on the number of threads.
struct PairGrid {
  int64_t rows;
  int64_t width;  // pairs per row
  int64_t rows_per_block;
  int64_t blocks;
  int64_t buckets;
  int64_t blocks_at_once;  // whose pairs the sampled op sorts, and sums by items, at a time
  __attribute__((always_inline)) int64_t pairs_per_block() const { return rows_per_block * width; }
  __attribute__((always_inline)) int64_t rows_in(int64_t block) const {
    return std::min(rows_per_block, rows - block * rows_per_block);
  }
};

static inline PairGrid pair_grid(int64_t rows, int64_t width, int64_t items) {
  const int64_t buckets = (items + kItemsPerBucket - 1) / kItemsPerBucket;
  int64_t rows_per_block = std::max<int64_t>(1, kPairsPerBlock / width);
  // A block stores an end for each bucket. So with many items it takes more pairs, as long as there are enough blocks for any
  // number of threads.
  const int64_t wanted = (kPairsPerEnd * buckets + width - 1) / width;
  rows_per_block = std::max(rows_per_block, std::min(wanted, rows / kEnoughBlocks));
  rows_per_block = std::min(rows_per_block, kMaxRowsPerBlock);
  const int64_t pairs_at_once = std::max(kPairsAtOnce, kPairsAtOncePerItem * items);
  const int64_t blocks_at_once = std::max(kFewestBlocksAtOnce, pairs_at_once / (rows_per_block * width));
  return {rows, width, rows_per_block, (rows + rows_per_block - 1) / rows_per_block, buckets, blocks_at_once};
}

// The ids of a row: its positive, M extra positives, N negatives. −1 is padding.
template <typename Id>
struct PairIds {
  const int64_t* pos;    // [B]
  const int64_t* extra;  // [B, M]
  int64_t m;
  const Id* neg;  // [B, N]; or only some rows, from `first` on
  int64_t n;
  int64_t first = 0;
  __attribute__((always_inline)) const Id* negatives_of(int64_t row) const { return neg + (row - first) * n; }
};

// An id out of range: its place in the id tensor, and its value.
struct BadId {
  const char* name = nullptr;
  int64_t row = 0;
  int64_t id = 0;
};

// Calls visit(id) for each of `ids` [n] that is not padding, until one is out of range.
template <typename Id, typename Visit>
BadId visit_ids(const Id* ids, int64_t n, int64_t items, const char* name, int64_t row, Visit&& visit) {
  for (int64_t j = 0; j < n; ++j) {
    const int64_t id = int64_t(ids[j]);
    if (uint64_t(id) < uint64_t(items)) {
      visit(id);
    } else if (id != -1) {
      return {name, row, id};
    }
  }
  return {};
}

// Calls visit(id) for the ids of rows [begin, end), in the order of the coefficients, until one is out of range.
template <typename Id, typename Visit>
BadId visit_rows(const PairIds<Id>& ids, int64_t begin, int64_t end, int64_t items, Visit&& visit) {
  for (int64_t b = begin; b < end; ++b) {
    BadId bad = visit_ids(ids.pos + b, 1, items, "pos_ids", b, visit);
    if (!bad.name) bad = visit_ids(ids.extra + b * ids.m, ids.m, items, "extra_pos_ids", b, visit);
    if (!bad.name) bad = visit_ids(ids.negatives_of(b), ids.n, items, "neg_ids", b, visit);
    if (bad.name) return bad;
  }
  return {};
}

// Writes where each bucket's pairs begin in a block to `ends` [buckets]; sort_block() advances these to where they end.
template <typename Id>
BadId count_block(const PairIds<Id>& ids, const PairGrid& grid, int64_t block, int64_t items, int32_t* ends) {
  std::fill(ends, ends + grid.buckets, 0);
  const int64_t begin = block * grid.rows_per_block;
  const BadId bad = visit_rows(ids, begin, begin + grid.rows_in(block), items, [ends](int64_t id) {
    ++ends[id >> kItemBits];
  });
  int32_t total = 0;
  for (int64_t k = 0; k < grid.buckets; ++k) {
    const int32_t count = ends[k];
    ends[k] = total;
    total += count;
  }
  return bad;
}

template <typename T>
struct SortedPair {
  T coefficient;
  PairKey key;
};

// Writes a block's pairs to their places, and zeros to the places that padding leaves unused, after the ids have been counted.
// coefficients: [rows in the block, width]. The pairs are scattered in `room` [grid.pairs_per_block()], which stays in the
// cache, and copied from there in order.
template <typename Id, typename T>
void sort_block(const PairIds<Id>& ids, const PairGrid& grid, int64_t block, const T* coefficients, int32_t* ends,
                SortedPair<T>* room, PairKey* keys, T* sorted) {
  const int64_t begin = block * grid.rows_per_block;
  for (int64_t r = 0; r < grid.rows_in(block); ++r) {
    const auto write = [=, &coefficients](const auto* row_ids, int64_t n) {
      for (int64_t j = 0; j < n; ++j) {
        const int64_t id = int64_t(row_ids[j]);
        const T coefficient = *coefficients++;
        if (id < 0) continue;
        room[ends[id >> kItemBits]++] = {coefficient, pair_key(r, id)};
      }
    };
    write(ids.pos + begin + r, 1);
    write(ids.extra + (begin + r) * ids.m, ids.m);
    write(ids.negatives_of(begin + r), ids.n);
  }
  const int64_t written = grid.buckets > 0 ? ends[grid.buckets - 1] : 0, places = grid.rows_in(block) * grid.width;
  for (int64_t e = 0; e < written; ++e) {
    sorted[e] = room[e].coefficient;
    keys[e] = room[e].key;
  }
  std::fill(keys + written, keys + places, PairKey(0));
  std::fill(sorted + written, sorted + places, T(0));
}

}  // namespace cw_cpu
