// Which negative is drawn at a place: the rule that every backend follows, host and device. Its twin is
// cw_ext/reference_sampling.py.
//
// Draw j of row b, attempt t: a word of Philox keyed by the seed, at the counter (⌊4⁻¹j⌋, t, row_offset + b) for uniform
// negatives, two words at (⌊2⁻¹j⌋, t, row_offset + b) for popular ones. An attempt is rejected if its item is a known
// positive of the row's query, or if its word would make some items more likely than others by rounding. After kMaxAttempts,
// which happens only to queries that know almost every item, an item is picked from those that are left.
#pragma once

#include <cstdint>

#include "philox.h"

namespace cw_ext {

constexpr uint32_t kMaxAttempts = 64;

// What negatives are drawn from. A null pointer is something that is not used.
struct NegativeSource {
  const int64_t* seed;       // one number
  int64_t row_offset;        // row b draws as row row_offset + b
  const int64_t* pos_ids;    // [B], or null: a row whose positive is −1 is padding
  const int64_t* query_ids;  // [B], or null: the rows have no known positives
  const int64_t* starts;     // [Q + 1]: the known positives of query u are known[starts[u]:starts[u + 1]],
  const int32_t* known;      //          sorted and distinct
  int64_t num_queries;
  uint32_t num_items;            // I; with candidates, C, and everything below is by position in `candidates`
  const uint32_t* thresholds;    // [I], these three for popular negatives: an alias table (cw_ext/alias_table.py), and
  const int32_t* aliases;        // [I]
  const int64_t* cumulative;     // [I] sums of its shares, up to and with each item: the last is I·2³²
  const int64_t* known_shares;   // [P + 1], or null: sums of the shares of known[0:k], modulo 2⁶⁴
  const int32_t* candidates;     // [C], or null: the items that can be drawn
};

}  // namespace cw_ext

namespace CW_NAMESPACE {

using cw_ext::NegativeSource;

// The known positives of a query.
struct KnownItems {
  const int32_t* items;  // [count], sorted and distinct
  int64_t count;

  // The number of k in [0, count) with before(k), which must hold up to some k and not from there on.
  template <typename Before>
  CW_INLINE int64_t places(Before before) const {
    int64_t first = 0, last = count;
    while (first < last) {
      const int64_t middle = first + (last - first) / 2;
      if (before(middle)) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    return first;
  }
  CW_INLINE bool contains(int32_t item) const {
    const int64_t k = places([&](int64_t place) { return items[place] < item; });
    return k < count && items[k] == item;
  }
};

// A row of padding draws nothing: its ids are −1.
CW_INLINE bool is_padding(const NegativeSource& source, int64_t row) {
  return source.pos_ids ? source.pos_ids[row] < 0 : source.query_ids && source.query_ids[row] == -1;
}

// A query out of range has no history: checked where the row is drawn.
CW_INLINE KnownItems known_items_of(const NegativeSource& source, int64_t row) {
  if (!source.query_ids) return {nullptr, 0};
  const int64_t query = source.query_ids[row];
  if (query < 0 || query >= source.num_queries) return {nullptr, 0};
  return {source.known + source.starts[query], source.starts[query + 1] - source.starts[query]};
}

// For numbers in [0, n) from a uniform word. All are equally likely if words whose product has a lower half below
// excess_of(n) are rejected (Lemire, "Fast random integer generation in an interval", 2019).
CW_INLINE uint32_t excess_of(uint32_t n) { return (0u - n) % n; }

// The item of an attempt's word, or −1.
CW_INLINE int32_t uniform_item(uint32_t word, uint32_t num_items, uint32_t excess) {
  const uint64_t product = uint64_t(word) * num_items;
  return uint32_t(product) < excess ? -1 : int32_t(product >> 32);
}

CW_INLINE int32_t attempt_of(const NegativeSource& source, uint32_t excess, uint64_t seed, int64_t row, int64_t j,
                             uint32_t attempt) {
  const bool popular = source.thresholds != nullptr;
  const uint32_t counter = uint32_t(popular ? j / 2 : j / 4);
  const Philox<uint32_t> words = philox<uint32_t>(counter, attempt, uint32_t(row), uint32_t(uint64_t(row) >> 32), seed);
  if (!popular) {
    const uint32_t word = j % 4 == 0 ? words.x[0] : j % 4 == 1 ? words.x[1] : j % 4 == 2 ? words.x[2] : words.x[3];
    return uniform_item(word, source.num_items, excess);
  }
  const int32_t slot = uniform_item(j % 2 == 0 ? words.x[0] : words.x[2], source.num_items, excess);
  if (slot < 0) return slot;
  return (j % 2 == 0 ? words.x[1] : words.x[3]) < source.thresholds[slot] ? slot : source.aliases[slot];
}

// The upper half of a·b.
CW_INLINE uint64_t high_product(uint64_t a, uint64_t b) {
  const uint64_t low = (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
  const uint64_t middle = (a >> 32) * (b & 0xFFFFFFFFu) + (low >> 32);
  const uint64_t other = (a & 0xFFFFFFFFu) * (b >> 32) + (middle & 0xFFFFFFFFu);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
}

// Popular items by their integer shares, whose sums are exact in any order.
struct Shares {
  const NegativeSource& source;
  const KnownItems& history;

  CW_INLINE uint64_t up_to(int64_t item) const { return uint64_t(source.cumulative[item]); }
  CW_INLINE uint64_t below(int64_t item) const { return item > 0 ? up_to(item - 1) : 0; }
  // Of the first `count` known positives together.
  CW_INLINE uint64_t known(int64_t count) const {
    if (source.known_shares) {
      const int64_t* const sums = source.known_shares + (history.items - source.known);
      return uint64_t(sums[count]) - uint64_t(sums[0]);
    }
    uint64_t sum = 0;  // a query that knows less than half of the items comes here once in 2⁶⁴ draws
    for (int64_t k = 0; k < count; ++k) sum += up_to(history.items[k]) - below(history.items[k]);
    return sum;
  }
};

// A negative from what the history leaves, without rejection; −1 where it leaves none.
// Not inlined, as it is rare and would take registers from the rest.
inline
#if defined(__CUDACC__)
    __host__ __device__
#else
    __attribute__((noinline))
#endif
    int32_t
    last_resort(const NegativeSource& source, const KnownItems& history, uint64_t seed, int64_t row, int64_t j) {
  const Philox<uint32_t> words = philox<uint32_t>(uint32_t(j), cw_ext::kMaxAttempts, uint32_t(row),
                                                  uint32_t(uint64_t(row) >> 32), seed);
  const uint64_t uniform = uint64_t(words.x[1]) << 32 | words.x[0];
  if (!source.thresholds) {
    const int64_t left = int64_t(source.num_items) - history.count;
    if (left <= 0) return -1;
    const int64_t rank = int64_t(high_product(uniform, uint64_t(left)));
    return int32_t(rank + history.places([&](int64_t k) { return history.items[k] - k <= rank; }));
  }
  const Shares shares{source, history};
  const uint64_t left = shares.up_to(int64_t(source.num_items) - 1) - shares.known(history.count);
  if (left == 0) return -1;
  // The first item up to which the shares of the unknown items sum to more than the target.
  const uint64_t target = high_product(uniform, left);
  const int64_t passed =
      history.places([&](int64_t k) { return shares.below(history.items[k]) - shares.known(k) <= target; });
  const uint64_t together = target + shares.known(passed);
  const KnownItems all{nullptr, int64_t(source.num_items)};
  return int32_t(all.places([&](int64_t item) { return shares.up_to(item) <= together; }));
}

// The item at the position that was drawn; −1 stays −1.
CW_INLINE int32_t item_at(const NegativeSource& source, int32_t place) {
  return source.candidates && place >= 0 ? source.candidates[place] : place;
}

// Draw j of the row, from attempt `first` on, as those before it are known to be rejected. `row` includes the offset.
CW_INLINE int32_t draw(const NegativeSource& source, const KnownItems& history, uint32_t excess, uint64_t seed, int64_t row,
                       int64_t j, uint32_t first) {
  for (uint32_t attempt = first; attempt < cw_ext::kMaxAttempts; ++attempt) {
    const int32_t item = attempt_of(source, excess, seed, row, j, attempt);
    if (item >= 0 && !history.contains(item)) return item;
  }
  return last_resort(source, history, seed, row, j);
}

}  // namespace CW_NAMESPACE
