// The distinct ids of a batch, sorted, and where each stands among them. Time and memory follow the number of ids: a bit per
// item of the table where that is less, else the ids themselves, sorted.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "../tensor.h"
#include "kernels.h"

namespace cw_cpu {

class DistinctIds {
 public:
  // Of ids in [0, num_items), at most `most`.
  DistinctIds(int64_t num_items, int64_t most);

  // The ids [n] that are not padding. Any thread may call it, until finish().
  template <typename Id>
  void add(const Id* ids, int64_t n);

  // The ids, int64 [U]. Nothing is added afterwards.
  Tensor finish(const cw_ext::Device& device);

  // Of the ids that were added, for the kernel that finds them.
  const IdPlaces& places() const { return places_; }

 private:
  Tensor from_words(const cw_ext::Device& device);
  Tensor from_list(const cw_ext::Device& device);

  int64_t num_items_;
  int64_t words_;  // 0: a list
  Scratch<IdWord> word_;
  Scratch<int64_t> listed_;
  int64_t count_ = 0;  // of those
  Scratch<int64_t> bins_;
  IdPlaces places_{};
};

}  // namespace cw_cpu
