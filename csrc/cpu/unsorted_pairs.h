// The gradient of the item table from pairs that forward has not sorted: they are sorted here, some blocks at a time, so that
// only these are in memory in sorted form. For all items of the table, or for those alone that a batch names.
#pragma once

#include <type_traits>
#include <utility>

#include "distinct_ids.h"
#include "embedding_tasks.h"
#include "sparse_gradient.h"

namespace cw_cpu {

// What sums need to know of the pairs: make() makes a thread's own source of them, which has
//   ids(begin, end): the PairIds of rows [begin, end), whose first row is row 0; may throw for an id out of range;
//   coefficients(begin, end): of the same rows, in the order of their pairs, after ids().
// The ids of pairs in [0, grid's items).
template <typename In, typename Make>
void sum_unsorted(ItemGradientTask<In> sums, const PairGrid& grid, const Tensor& gradient, int64_t grain, const Make& make) {
  using T = typename Compute<In>::type;
  const T* const all_sources = sums.sources;
  const int64_t at_once = std::min(grid.blocks_at_once, grid.blocks), parts = (grid.blocks + at_once - 1) / at_once;
  const Options options{std::is_same_v<T, double> ? kDouble : kFloat, gradient.device()};
  Tensor high, low;  // the sums from part to part
  if (parts > 1) {
    high = gradient;
    if constexpr (!std::is_same_v<In, T>) high = empty(gradient.sizes(), options);
    low = empty(high.sizes(), options);
  }
  const int64_t pairs = std::min(at_once * grid.pairs_per_block(), grid.rows * grid.width);
  const Tensor coefficients = cw_ext::empty_large({pairs}, options);
  const Tensor keys = cw_ext::empty_large({pairs}, options.with(kShort));
  const Tensor ends = empty({at_once, grid.buckets}, options.with(kInt));
  sums.coefficients = pointer<const T>(coefficients);
  sums.keys = pointer<const PairKey>(keys);
  sums.ends = pointer<const int32_t>(ends);

  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first_block = part * at_once, count = std::min(at_once, grid.blocks - first_block);
    parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      auto source = make();
      const auto sort_room = scratch<SortedPair<T>>(grid.pairs_per_block());
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = (first_block + k) * grid.rows_per_block, end = begin + grid.rows_in(first_block + k);
        const auto ids = source.ids(begin, end);
        PairGrid block = grid;
        block.rows = end - begin;
        block.blocks = 1;
        int32_t* const own_ends = pointer<int32_t>(ends) + k * grid.buckets;
        const int64_t base = k * grid.pairs_per_block();
        count_block(ids, block, 0, sums.num_items, own_ends);
        sort_block(ids, block, 0, source.coefficients(begin, end), own_ends, sort_room.get(),
                   pointer<PairKey>(keys) + base, pointer<T>(coefficients) + base);
      }
    });
    const int64_t first_row = first_block * grid.rows_per_block;
    sums.sources = all_sources + first_row * sums.padded_dim;
    sums.grid = grid;
    sums.grid.rows = std::min(grid.rows - first_row, count * grid.rows_per_block);
    sums.grid.blocks = count;
    if (part > 0) {
      sums.before_high = pointer<const T>(high);
      sums.before_low = pointer<const T>(low);
    }
    const bool more = part + 1 < parts;
    sums.after_high = more ? pointer<T>(high) : nullptr;
    sums.after_low = more ? pointer<T>(low) : nullptr;
    sum_by_items(sums);
  }
}

// A source of pairs whose ids are their places among the distinct ones.
template <typename Source>
class PlacesOf {
 public:
  PlacesOf(Source source, const IdPlaces& places, int64_t rows, int64_t width)
      : source_(std::move(source)), places_(places), room_(scratch<int64_t>(rows * width)) {}

  PairIds<int64_t> ids(int64_t begin, int64_t end) {
    const auto given = source_.ids(begin, end);
    const int64_t rows = end - begin;
    int64_t* const extra = room_.get() + rows;
    int64_t* const neg = extra + rows * given.m;
    CW_WITH_ISA(find_places<int64_t>(places_, given.pos, rows, room_.get()));
    CW_WITH_ISA(find_places<int64_t>(places_, given.extra, rows * given.m, extra));
    CW_WITH_ISA(find_places(places_, given.neg, rows * given.n, neg));
    return {room_.get(), extra, given.m, neg, given.n};
  }
  auto coefficients(int64_t begin, int64_t end) { return source_.coefficients(begin, end); }

 private:
  Source source_;
  const IdPlaces& places_;
  Scratch<int64_t> room_;
};

// The gradients of the items that the pairs name. `blocks` is their grid over the whole table, whose blocks are the longest.
template <typename In, typename Make>
cw_ext::SparseRows sum_sparse(ItemGradientTask<In> sums, const Tensor& items, const PairGrid& blocks, int64_t grain,
                              const Make& make) {
  const int64_t dim = items.size(1), rows = blocks.rows, width = blocks.width;
  DistinctIds distinct(items.size(0), rows * width);
  parallel_for(0, blocks.blocks, grain, [&](int64_t first, int64_t last) {
    auto source = make();
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k * blocks.rows_per_block, count = blocks.rows_in(k);
      const auto ids = source.ids(begin, begin + count);
      distinct.add(ids.pos, count);
      distinct.add(ids.extra, count * ids.m);
      distinct.add(ids.neg, count * ids.n);
    }
  });
  const Tensor ids = distinct.finish(items.device());
  const int64_t found = ids.size(0);
  const Tensor gradient = cw_ext::empty_large({found, dim}, options_of(items));
  if (found > 0) {
    sums.num_items = found;
    sums.item_ids = pointer<const int64_t>(ids);
    sums.gradient = pointer<In>(gradient);
    const PairGrid grid = pair_grid(rows, width, found);
    if (found == items.size(0)) {  // all of them: each id is its own place
      sums.item_ids = nullptr;
      sum_unsorted(sums, grid, gradient, grain, make);
      return {ids, gradient};
    }
    sum_unsorted(sums, grid, gradient, grain, [&] {
      return PlacesOf(make(), distinct.places(), grid.rows_per_block, width);
    });
  }
  return {ids, gradient};
}

}  // namespace cw_cpu
