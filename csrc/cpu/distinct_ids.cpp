#include "distinct_ids.h"

#include <algorithm>
#include <array>
#include <vector>

#include "../allocate.h"
#include "dispatch.h"

namespace cw_cpu {

namespace {

constexpr int kDigitBits = 11;

// Sorts ids [n] below `end`, by digits from the lowest on.
void sort_ids(Scratch<int64_t>& ids, int64_t n, int64_t end) {
  auto other = scratch<int64_t>(n);
  for (int shift = 0; (end - 1) >> shift > 0; shift += kDigitBits) {
    std::array<int64_t, size_t(1) << kDigitBits> place{};
    const auto digit = [shift](int64_t id) { return size_t(id >> shift) & ((size_t(1) << kDigitBits) - 1); };
    for (int64_t i = 0; i < n; ++i) ++place[digit(ids[i])];
    int64_t total = 0;
    for (int64_t& count : place) total += std::exchange(count, total);
    for (int64_t i = 0; i < n; ++i) other[place[digit(ids[i])]++] = ids[i];
    std::swap(ids, other);
  }
}

}  // namespace

DistinctIds::DistinctIds(int64_t num_items, int64_t most) : num_items_(num_items) {
  const int64_t words = (num_items + kIdsPerWord - 1) / kIdsPerWord;
  words_ = words <= most ? words : 0;
  if (words_ > 0) {
    word_ = scratch<IdWord>(words_);
    std::fill_n(word_.get(), words_, IdWord{});
  } else {
    listed_ = scratch<int64_t>(most);
  }
}

template <typename Id>
void DistinctIds::add(const Id* ids, int64_t n) {
  if (words_ > 0) {
    for (int64_t i = 0; i < n; ++i) {
      if (ids[i] < 0) continue;
      uint64_t& bits = word_[ids[i] / kIdsPerWord].bits;
      const uint64_t bit = uint64_t(1) << (ids[i] % kIdsPerWord);
      // A locked instruction only for an id that is new: popular ones are met often.
      if (!(__atomic_load_n(&bits, __ATOMIC_RELAXED) & bit)) __atomic_fetch_or(&bits, bit, __ATOMIC_RELAXED);
    }
    return;
  }
  const int64_t count = n - std::count_if(ids, ids + n, [](Id id) { return id < 0; });
  int64_t place = __atomic_fetch_add(&count_, count, __ATOMIC_RELAXED);
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] >= 0) listed_[place++] = int64_t(ids[i]);
  }
}

template void DistinctIds::add<int32_t>(const int32_t*, int64_t);
template void DistinctIds::add<int64_t>(const int64_t*, int64_t);

Tensor DistinctIds::finish(const cw_ext::Device& device) { return words_ > 0 ? from_words(device) : from_list(device); }

Tensor DistinctIds::from_words(const cw_ext::Device& device) {
  int64_t total = 0;
  for (int64_t w = 0; w < words_; ++w) {
    word_[w].before = total;
    total += __builtin_popcountll(word_[w].bits);
  }
  const Tensor ids = empty({total}, {kLong, device});
  int64_t* const out = pointer<int64_t>(ids);
  parallel_for(0, words_, grain(kIdsPerWord), [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      int64_t* to = out + word_[w].before;
      for (uint64_t left = word_[w].bits; left != 0; left &= left - 1) *to++ = w * kIdsPerWord + __builtin_ctzll(left);
    }
  });
  places_ = {word_.get(), nullptr, nullptr, 0};
  return ids;
}

Tensor DistinctIds::from_list(const cw_ext::Device& device) {
  sort_ids(listed_, count_, num_items_);
  const int64_t total = std::unique(listed_.get(), listed_.get() + count_) - listed_.get();
  const Tensor ids = empty({total}, {kLong, device});
  std::copy_n(listed_.get(), total, pointer<int64_t>(ids));
  // Bins of neighbouring ids, about as many as there are ids, with where each begins.
  int shift = 0;
  while ((num_items_ - 1) >> shift > total) ++shift;
  const int64_t bins = ((num_items_ - 1) >> shift) + 1;
  bins_ = scratch<int64_t>(bins + 1);
  int64_t place = 0;
  for (int64_t bin = 0; bin <= bins; ++bin) {
    while (place < total && listed_[place] >> shift < bin) ++place;
    bins_[bin] = place;
  }
  places_ = {nullptr, listed_.get(), bins_.get(), shift};
  return ids;
}

}  // namespace cw_cpu
