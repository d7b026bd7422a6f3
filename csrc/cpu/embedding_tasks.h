// For the gradients of embeddings and sampled: norms, ids, and sums over sorted pairs.
#pragma once

#include <algorithm>
#include <vector>

#include "../allocate.h"
#include "dispatch.h"

namespace cw_cpu {

// A pass over the table is worth it if the batch reads its rows more than a few times; otherwise the norms are computed with
// the scores.
inline Tensor inverse_norms_of(const Tensor& items, int64_t reads, ScalarType compute) {
  if (items.size(0) > reads / 4) return {};
  Tensor result = empty({items.size(0)}, options_of(items, compute));
  with_type(items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    using T = typename Compute<In>::type;
    const In* const x = pointer<const In>(items);
    T* const out = pointer<T>(result);
    const int64_t dim = items.size(1);
    parallel_for(0, items.size(0), grain(dim, 1), [&](int64_t begin, int64_t end) {
      CW_WITH_ISA(inverse_norms<In>(x, dim, out, begin, end));
    });
  });
  return result;
}

// A thread's memory for the embeddings kernel.
template <typename In>
class EmbeddingsRoom {
 public:
  using T = typename Compute<In>::type;
  EmbeddingsRoom(int64_t n, int64_t m, int64_t dim)
      : item_rows_(scratch<const In*>(embeddings_rows(n, m))), numbers_(scratch<T>(embeddings_scratch(n, m, dim))) {}
  EmbeddingsScratch<In> pointers() const { return {item_rows_.get(), numbers_.get()}; }

 private:
  Scratch<const In*> item_rows_;
  Scratch<T> numbers_;
};

template <typename Id>
PairIds<Id> pair_ids(const Tensor& pos, const Tensor& extra, const Tensor& neg) {
  return {pointer<const int64_t>(pos), pointer<const int64_t>(extra), extra.size(1), pointer<const Id>(neg),
          neg.defined() ? neg.size(1) : 0};
}

inline cw_ext::NegativeSource source_of(const cw_ext::Draws& draws) {
  const auto& history = draws.history;
  return {pointer<const int64_t>(draws.seed),
          draws.first_row,
          pointer<const int64_t>(draws.pos_ids),
          pointer<const int64_t>(history.query_ids),
          pointer<const int64_t>(history.starts),
          pointer<const int32_t>(history.known),
          history.starts.defined() ? history.starts.size(0) - 1 : 0,
          uint32_t(draws.num_drawable),
          pointer<const uint32_t>(draws.thresholds),
          pointer<const int32_t>(draws.aliases),
          pointer<const int64_t>(draws.cumulative),
          pointer<const int64_t>(draws.known_shares),
          pointer<const int32_t>(draws.candidates)};
}

// Keeps the first bad id of the batch, in whatever order the threads find them.
inline void note_first(const BadId& found, BadId& first) {
  if (!first.name || found.row < first.row) first = found;
}

inline void check_found(const BadId& bad, int64_t num_items) {
  CW_CHECK_INDEX(!bad.name, bad.name, " must be in [0, ", num_items, "), or −1 for padding, got ", bad.id, " in row ",
                    bad.row);
}

// The task without its pairs. The returned tensor holds the sources, with room for `further` rows to be filled in.
template <typename In>
Tensor fill_item_task(const cw_ext::ItemGradientCall& call, int64_t further, ItemGradientTask<In>& task) {
  using T = typename Compute<In>::type;
  const int64_t dim = call.items.size(1), rows = call.sources.size(0);
  task.items = pointer<const In>(call.items);
  task.item_ids = nullptr;
  task.num_items = call.items.size(0);
  task.dim = dim;
  task.padded_dim = round_up_dim(dim);
  task.normalized = call.normalized;
  task.before_high = pointer<const T>(call.initial);
  task.before_low = nullptr;
  task.after_high = task.after_low = nullptr;
  task.gradient = pointer<In>(call.gradient);
  Tensor sources = call.sources;
  if (further > 0 || task.padded_dim != dim) {
    sources = empty({rows + further, task.padded_dim}, options_of(call.sources));
    const T* const from = pointer<const T>(call.sources);
    T* const to = pointer<T>(sources);
    for (int64_t b = 0; b < rows; ++b) {
      std::copy(from + b * dim, from + (b + 1) * dim, to + b * task.padded_dim);
      std::fill(to + b * task.padded_dim + dim, to + (b + 1) * task.padded_dim, T(0));
    }
  }
  task.sources = pointer<const T>(sources);
  return sources;
}

// Where to cut the buckets into parts of equal work, as items differ in popularity by orders of magnitude.
inline std::vector<int64_t> cuts_of(const PairGrid& grid, const int32_t* ends, int64_t dim) {
  std::vector<int64_t> work(static_cast<size_t>(grid.buckets), kItemsPerBucket);  // the rows to write
  for (int64_t block = 0; block < grid.blocks; ++block) {
    const int32_t* const own_ends = ends + block * grid.buckets;
    for (int64_t k = 0; k < grid.buckets; ++k) work[k] += own_ends[k] - (k > 0 ? own_ends[k - 1] : 0);
  }
  int64_t total = 0;
  for (const int64_t w : work) total += w;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(total / grain(dim), num_threads() * 8));
  std::vector<int64_t> cuts{0};
  int64_t done = 0;
  for (int64_t k = 0; k < grid.buckets; ++k) {
    done += work[k];
    if (done * parts >= total * int64_t(cuts.size())) cuts.push_back(k + 1);
  }
  return cuts;
}

// All buckets of the task, in parallel.
template <typename In>
void sum_by_items(const ItemGradientTask<In>& task) {
  using T = typename Compute<In>::type;
  const std::vector<int64_t> cuts = cuts_of(task.grid, task.ends, task.dim);
  parallel_for(0, int64_t(cuts.size()) - 1, 1, [&](int64_t first, int64_t last) {
    const auto room = scratch<T>(item_gradient_scratch(task.dim));
    CW_WITH_ISA(item_gradient<In>(task, cuts[first], cuts[last], room.get()));
  });
}

}  // namespace cw_cpu
