// The columns of each item among shared negatives, by hash: what a row leaves out costs nothing in proportion to the table.
#pragma once

#include <cstdint>

namespace cw_cpu {

// slots [2^bits] holds an item's first column at the first free slot from its hash on; −1 is free. At most half are taken.
struct ColumnsByItem {
  const int32_t* slots;
  const int32_t* next;   // [N]: an item's next column, or −1
  const int64_t* items;  // [N]: the column's item
  int bits;

  __attribute__((always_inline)) int64_t slot_of(int64_t item) const {
    const uint64_t mask = (uint64_t(1) << bits) - 1;
    uint64_t slot = (uint64_t(item) * 0x9E3779B97F4A7C15u) >> (64 - bits);
    while (slots[slot] >= 0 && items[slots[slot]] != item) slot = (slot + 1) & mask;
    return int64_t(slot);
  }
  __attribute__((always_inline)) int32_t first(int64_t item) const { return slots[slot_of(item)]; }
};

// For n columns.
static inline int slot_bits(int64_t n) {
  int bits = 2;
  while (int64_t(1) << bits < 2 * n) ++bits;
  return bits;
}

}  // namespace cw_cpu
