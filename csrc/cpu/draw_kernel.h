// Rows of drawn negatives (negative_sampling.h), many draws at a time. Included by kernels_impl.h.
#pragma once

#include <cstring>

#include "../negative_sampling.h"
#include "kernels.h"

namespace cw_cpu {
namespace CW_ISA {

using namespace CW_NAMESPACE;

// Draws handled at a time, at most; for a few, kFewDraws or kSomeDraws are enough.
constexpr int kFewDraws = 32, kSomeDraws = 128, kDraws = 256;

// A filter that recognises most items that are not known positives of a query: a bit per item, shared by items with the same
// last bits. It stays in L1, however many items there are.
struct Filter {
  uint32_t* bits;
  uint32_t mask;
  bool is_exact;  // every item has a bit of its own

  CW_INLINE Filter(uint32_t* room, const KnownItems& known, uint32_t num_items) : bits(room), mask(31) {
    constexpr uint32_t kLarge = kFilterWords * 32 - 1;
    while (known.count > 0 && mask < kLarge && int64_t(mask) < known.count * 64) mask = 2 * mask + 1;
    for (uint32_t w = 0; w <= mask / 32; ++w) bits[w] = 0;
    for (int64_t k = 0; k < known.count; ++k) {
      const uint32_t bit = uint32_t(known.items[k]) & mask;
      bits[bit / 32] |= 1u << (bit % 32);
    }
    is_exact = num_items - 1 <= mask;
  }
};

// Reasons to look at an attempt again: its item may be a known positive, or its word would make some items more likely.
constexpr uint32_t kMaybeKnown = 1, kFavours = 2;

// Doubts looked at at a time, and where the first of them is.
constexpr int kDoubts = 8;
CW_INLINE uint64_t doubts_at(const uint8_t* doubts) {
  uint64_t together;
  std::memcpy(&together, doubts, sizeof(together));
  return together;
}
CW_INLINE uint64_t doubt_mask(int place) {
  constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  return uint64_t(0xFF) << 8 * (kLittle ? place : kDoubts - 1 - place);
}
CW_INLINE int first_doubt(uint64_t any) {
  constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  return (kLittle ? __builtin_ctzll(any) : __builtin_clzll(any)) / 8;
}

// A multiple of the draws that any instruction set's vectors hold.
constexpr int kWholeVectors = 16;

// The words of some attempts: one each for the slot and, with popular items, one for the threshold.
struct Words {
  uint32_t slots[kDraws];
  uint32_t coins[kDraws];
};

// The items of `count` attempts and the reasons against each; returns how many attempts have a reason.
template <bool Popular>
CW_INLINE int items_of(const NegativeSource& source, uint32_t excess, const Filter& filter, const Words& words, int count,
                       int32_t* ids, uint8_t* doubts) {
  const uint64_t num_items = source.num_items;
  const uint32_t* const bits = filter.bits;
  const uint32_t mask = filter.mask;
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    const uint64_t product = uint64_t(words.slots[j]) * num_items;
    ids[j] = int32_t(product >> 32);
    doubts[j] = uint8_t(uint32_t(product) < excess ? kFavours : 0u);
  }
  if (Popular) {
    const uint32_t* const thresholds = source.thresholds;
    const int32_t* const aliases = source.aliases;
#pragma omp simd
    for (int j = 0; j < count; ++j) {
      const int32_t slot = ids[j], alias = aliases[slot];  // read unconditionally: a condition would be a branch
      ids[j] = words.coins[j] < thresholds[slot] ? slot : alias;
    }
  }
  int doubtful = 0;
#pragma omp simd reduction(+ : doubtful)
  for (int j = 0; j < count; ++j) {
    const uint32_t bit = uint32_t(ids[j]) & mask;
    const uint32_t doubt = doubts[j] | (bits[bit / 32] >> (bit % 32) & kMaybeKnown);
    doubts[j] = uint8_t(doubt);
    doubtful += doubt != 0u;
  }
  return doubtful;
}

// The first attempts at draws [first, first + Draws) of a row.
template <bool Popular, int Draws>
int first_attempts(const NegativeSource& source, uint32_t excess, uint64_t seed, int64_t row, int64_t first,
                   const Filter& filter, int32_t* ids, uint8_t* doubts) {
  constexpr int kPerCounter = Popular ? 2 : 4;
  Words words;
  const uint64_t counter = uint64_t(first / kPerCounter), low = uint32_t(row), high = uint64_t(row) >> 32;
#pragma omp simd
  for (int i = 0; i < Draws / kPerCounter; ++i) {
    const Philox<uint64_t> w = philox<uint64_t>(counter + uint64_t(i), 0, low, high, seed);
    if (Popular) {
      words.slots[2 * i] = uint32_t(w.x[0]);
      words.coins[2 * i] = uint32_t(w.x[1]);
      words.slots[2 * i + 1] = uint32_t(w.x[2]);
      words.coins[2 * i + 1] = uint32_t(w.x[3]);
    } else {
      for (int k = 0; k < 4; ++k) words.slots[4 * i + k] = uint32_t(w.x[k]);
    }
  }
  return items_of<Popular>(source, excess, filter, words, Draws, ids, doubts);
}

// The same attempt at the draws first + open[0, count) of a row.
template <bool Popular>
int further_attempts(const NegativeSource& source, uint32_t excess, uint64_t seed, int64_t row, int64_t first,
                     uint32_t attempt, const int32_t* open, int count, const Filter& filter, int32_t* ids,
                     uint8_t* doubts) {
  Words words;
  const uint64_t low = uint32_t(row), high = uint64_t(row) >> 32;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const uint64_t j = uint64_t(first) + uint64_t(open[i]);
    const Philox<uint64_t> w = philox<uint64_t>(Popular ? j / 2 : j / 4, attempt, low, high, seed);
    const bool second = j & 1, later = j & 2;
    if (Popular) {
      words.slots[i] = uint32_t(second ? w.x[2] : w.x[0]);
      words.coins[i] = uint32_t(second ? w.x[3] : w.x[1]);
    } else {
      words.slots[i] = uint32_t(later ? (second ? w.x[3] : w.x[2]) : (second ? w.x[1] : w.x[0]));
    }
  }
  return items_of<Popular>(source, excess, filter, words, count, ids, doubts);
}

// Draws [first, first + count) of a row, count ≤ Draws; `out` has room for Draws.
template <bool Popular, int Draws>
void draw_some(const NegativeSource& source, uint32_t excess, uint64_t seed, int64_t row, int64_t first, int count,
               const KnownItems& known, const Filter& filter, int32_t* out) {
  uint8_t doubts[Draws];
  const auto is_rejected = [&](int32_t id, uint8_t doubt) {
    return (doubt & kFavours) || (doubt && (filter.is_exact || known.contains(id)));
  };
  int32_t open[Draws];  // what is still rejected
  int left = 0;
  if (first_attempts<Popular, Draws>(source, excess, seed, row, first, filter, out, doubts) > 0) {
    // First the groups with a doubt, without a branch: about a quarter have one, which is mispredicted as often.
    int groups[Draws / kDoubts], some = 0;
    for (int group = 0; group < Draws / kDoubts; ++group) {
      groups[some] = group * kDoubts;
      some += doubts_at(doubts + group * kDoubts) != 0;
    }
    for (int g = 0; g < some; ++g) {
      for (uint64_t any = doubts_at(doubts + groups[g]); any != 0;) {
        const int place = first_doubt(any), j = groups[g] + place;
        any &= ~doubt_mask(place);
        if (j < count && is_rejected(out[j], doubts[j])) open[left++] = j;
      }
    }
  }
  for (uint32_t attempt = 1; left > 0 && attempt < cw_ext::kMaxAttempts; ++attempt) {
    int32_t ids[Draws];
    // Whole vectors: what is left over would be done one by one.
    const int padded = (left + kWholeVectors - 1) / kWholeVectors * kWholeVectors;
    for (int i = left; i < padded; ++i) open[i] = open[0];
    further_attempts<Popular>(source, excess, seed, row, first, attempt, open, padded, filter, ids, doubts);
    int still = 0;
    for (int i = 0; i < left; ++i) {
      out[open[i]] = ids[i];
      if (is_rejected(ids[i], doubts[i])) open[still++] = open[i];
    }
    left = still;
  }
  for (int i = 0; i < left; ++i) out[open[i]] = last_resort(source, known, seed, row, first + open[i]);
}

// draw_some() for so many draws.
template <bool Popular>
auto drawing(int count) {
  return count <= kFewDraws    ? draw_some<Popular, kFewDraws>
         : count <= kSomeDraws ? draw_some<Popular, kSomeDraws>
                               : draw_some<Popular, kDraws>;
}

// out[j] = table[ids[j]], or 0 for an id of −1.
template <typename T>
void look_up(const T* table, const int32_t* ids, int64_t n, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T value = table[ids[j] < 0 ? 0 : ids[j]];
    out[j] = ids[j] < 0 ? T(0) : value;
  }
}

// ids [end - begin, n] of rows [begin, end). room: [kFilterWords].
void draw_rows(const NegativeSource& source, int64_t n, int64_t begin, int64_t end, int32_t* ids, uint32_t* room) {
  const uint64_t seed = uint64_t(*source.seed);
  const uint32_t excess = excess_of(source.num_items);
  for (int64_t b = begin; b < end; ++b) {
    int32_t* const row = ids + (b - begin) * n;
    if (is_padding(source, b)) {
      for (int64_t j = 0; j < n; ++j) row[j] = -1;
      continue;
    }
    const KnownItems known = known_items_of(source, b);
    const Filter filter(room, known, source.num_items);
    for (int64_t first = 0; first < n; first += kDraws) {
      int32_t some[kDraws];
      const int count = int(n - first < kDraws ? n - first : kDraws);
      int32_t* const now = count < kDraws ? some : row + first;
      const auto draw_now = source.thresholds ? drawing<true>(count) : drawing<false>(count);
      draw_now(source, excess, seed, source.row_offset + b, first, count, known, filter, now);
      for (int j = 0; now == some && j < count; ++j) row[first + j] = some[j];
    }
    for (int64_t j = 0; source.candidates && j < n; ++j) row[j] = item_at(source, row[j]);
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
