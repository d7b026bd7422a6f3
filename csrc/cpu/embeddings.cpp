// From embeddings on the CPU: blocks of rows in parallel forward, buckets of items in parallel backward.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "../allocate.h"
#include "dense.h"
#include "dispatch.h"
#include "embedding_tasks.h"
#include "unsorted_pairs.h"

namespace cw_cpu {

namespace {

template <typename In, typename Id>
void forward(const cw_ext::EmbeddingsCall& call) {
  using T = typename Compute<In>::type;
  const int64_t rows = call.queries.size(0), num_items = call.items.size(0);
  const int64_t n = call.neg_ids.size(1), m = call.extra_ids.size(1);
  const PairGrid grid = pair_grid(rows, 1 + m + n, num_items);
  std::vector<In> room;
  EmbeddingsTask<In, Id> task;
  fill_query_task(call, room, task);
  task.ids = pair_ids<Id>(call.pos_ids, call.extra_ids, call.neg_ids);
  const Tensor inverse_norms =
      call.normalized ? inverse_norms_of(call.items, rows * grid.width, call.out.loss.scalar_type()) : Tensor();
  task.inverse_norms = pointer<const T>(inverse_norms);
  const bool wanted = call.with_gradients, sorted = wanted && call.pair_keys.defined();

  std::mutex mutex;
  BadId bad;
  parallel_for(0, grid.blocks, grain(grid.pairs_per_block() * task.items.dim), [&](int64_t first, int64_t last) {
    const EmbeddingsRoom<In> room(n, m, task.items.dim);
    const auto coefficients = scratch<T>(sorted ? grid.pairs_per_block() : 0);
    const auto sort_room = scratch<SortedPair<T>>(sorted ? grid.pairs_per_block() : 0);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * grid.rows_per_block, end = begin + grid.rows_in(block);
      int32_t* const ends = sorted ? pointer<int32_t>(call.pair_ends) + block * grid.buckets : nullptr;
      const BadId found = sorted ? count_block(task.ids, grid, block, num_items, ends)
                                 : visit_rows(task.ids, begin, end, num_items, [](int64_t) {});
      T* const kept = wanted && !sorted ? pointer<T>(call.coefficients) + begin * grid.width : coefficients.get();
      if (found.name) {
        const std::lock_guard<std::mutex> lock(mutex);
        note_first(found, bad);
        return;
      }
      CW_WITH_ISA(embeddings<In, Id>(task, begin, end, wanted ? kept : nullptr, room.pointers()));
      if (sorted) {
        const int64_t base = block * grid.pairs_per_block();
        sort_block(task.ids, grid, block, coefficients.get(), ends, sort_room.get(),
                   pointer<PairKey>(call.pair_keys) + base, pointer<T>(call.coefficients) + base);
      }
    }
  });
  check_found(bad, num_items);
}

// Sorts pairs that are not sorted yet: those of the positives if rows share their negatives.
template <typename T>
void sort_pairs(const PairIds<int64_t>& ids, const PairGrid& grid, int64_t num_items, const T* coefficients,
                int32_t* ends, PairKey* keys, T* sorted) {
  parallel_for(0, grid.blocks, grain(grid.pairs_per_block()), [&](int64_t first, int64_t last) {
    const auto room = scratch<SortedPair<T>>(grid.pairs_per_block());
    for (int64_t block = first; block < last; ++block) {
      const int64_t base = block * grid.pairs_per_block();
      int32_t* const own_ends = ends + block * grid.buckets;
      // The forward pass has checked the ids, but an op can be called alone.
      const BadId bad = count_block(ids, grid, block, num_items, own_ends);
      CW_CHECK_INDEX(!bad.name, "ids must be in [0, ", num_items, "), or −1 for padding, got ", bad.id);
      sort_block(ids, grid, block, coefficients + base, own_ends, room.get(), keys + base, sorted + base);
    }
  });
}

// Sorted pairs are an argument of the op, so they are checked again before memory is read by them.
void check_pairs(const PairGrid& grid, const PairKey* keys, const int32_t* ends) {
  parallel_for(0, grid.blocks, grain(grid.pairs_per_block(), 1), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int32_t* const own_ends = ends + block * grid.buckets;
      const int64_t most = grid.rows_in(block) * grid.width;
      int32_t previous = 0;
      bool rises = true;
      for (int64_t k = 0; k < grid.buckets; ++k) {
        rises &= previous <= own_ends[k];
        previous = own_ends[k];
      }
      CW_CHECK_VALUE(rises && previous <= most, "pair_ends must rise to at most ", most, " in block ", block);
      PairKey largest = 0;
      const PairKey* const own_keys = keys + block * grid.pairs_per_block();
      for (int32_t e = 0; e < previous; ++e) largest = std::max(largest, own_keys[e]);
      CW_CHECK_VALUE(row_of(largest) < grid.rows_in(block), "pair_keys names the row ", row_of(largest),
                        " of block ", block, ", which has ", grid.rows_in(block));
    }
  });
}

// The pairs of the positives, [B, 1 + M], and behind them a row per shared negative.
template <typename T>
struct SharedPairs {
  std::vector<int64_t> pos_ids, extra_ids;
  std::vector<T> coefficients;
};

// A shared negative's row has one pair, of weight 1, or 0 if all rows leave the item out: such an item may hold anything, and
// must not reach the normalisation. `sums` are the shared negatives' own sources, [N, D] with a stride.
template <typename T>
SharedPairs<T> shared_pairs(const cw_ext::ItemGradientCall& call, const T* sums, int64_t stride) {
  const int64_t rows = call.pos_ids.size(0), shared = call.shared_ids.size(0), dim = call.items.size(1);
  const int64_t width = call.coefficients.size(1);
  const auto copied = [](const auto* from, int64_t count, int64_t room, auto filler) {
    std::vector<decltype(filler)> to(from, from + count);
    to.resize(size_t(room), filler);
    return to;
  };
  SharedPairs<T> pairs{
      copied(pointer<const int64_t>(call.pos_ids), rows, rows + shared, int64_t(-1)),
      copied(pointer<const int64_t>(call.extra_ids), rows * (width - 1), (rows + shared) * (width - 1), int64_t(-1)),
      copied(pointer<const T>(call.coefficients), rows * width, (rows + shared) * width, T(0))};
  const int64_t* const ids = pointer<const int64_t>(call.shared_ids);
  for (int64_t n = 0; n < shared; ++n) {
    pairs.pos_ids[rows + n] = ids[n];
    const T* const x = sums + n * stride;
    pairs.coefficients[(rows + n) * width] = std::any_of(x, x + dim, [](T value) { return value != 0; });
  }
  return pairs;
}

// The task but for its pairs. The returned tensor holds the sources: the rows' and, behind them, the shared negatives' own.
template <typename In>
Tensor fill_sources(const cw_ext::ItemGradientCall& call, int64_t shared, ItemGradientTask<In>& task) {
  using T = typename Compute<In>::type;
  const int64_t rows = call.sources.size(0);
  const Tensor sources = fill_item_task(call, shared, task);
  if (shared > 0) {
    weighted_sums(pointer<const T>(call.shared_coefficients), rows, shared, pointer<const T>(call.sources),
                  call.items.size(1), T(call.scale), pointer<T>(sources) + rows * task.padded_dim, task.padded_dim);
  }
  return sources;
}

template <typename In>
void backward(const cw_ext::ItemGradientCall& call) {
  using T = typename Compute<In>::type;
  const int64_t num_items = call.items.size(0), rows = call.sources.size(0);
  const int64_t shared = call.shared_ids.defined() ? call.shared_ids.size(0) : 0;
  ItemGradientTask<In> task;
  const Tensor sources = fill_sources(call, shared, task);

  Tensor keys = call.pair_keys, ends = call.pair_ends, coefficients = call.coefficients;
  if (!call.neg_ids.defined()) {
    const int64_t width = coefficients.size(1);
    SharedPairs<T> pairs;
    if (shared > 0) pairs = shared_pairs<T>(call, pointer<const T>(sources) + rows * task.padded_dim, task.padded_dim);
    const PairIds<int64_t> ids = shared > 0 ? PairIds<int64_t>{pairs.pos_ids.data(), pairs.extra_ids.data(), width - 1}
                                            : pair_ids<int64_t>(call.pos_ids, call.extra_ids, Tensor());
    task.grid = pair_grid(rows + shared, width, num_items);
    const Options options = options_of(call.coefficients);
    coefficients = empty({rows + shared, width}, options);
    keys = empty({rows + shared, width}, options.with(kShort));
    ends = empty({task.grid.blocks, task.grid.buckets}, options.with(kInt));
    sort_pairs(ids, task.grid, num_items, shared > 0 ? pairs.coefficients.data() : pointer<const T>(call.coefficients),
               pointer<int32_t>(ends), pointer<PairKey>(keys), pointer<T>(coefficients));
  } else {
    task.grid = pair_grid(rows, coefficients.size(1), num_items);
    check_pairs(task.grid, pointer<const PairKey>(keys), pointer<const int32_t>(ends));
  }
  task.keys = pointer<const PairKey>(keys);
  task.coefficients = pointer<const T>(coefficients);
  task.ends = pointer<const int32_t>(ends);

  sum_by_items(task);
}

// Where the item gradient's pairs come from: the ids that were given, with forward's coefficients in their order.
template <typename Id, typename T>
struct GivenPairs {
  PairIds<Id> all;
  const T* all_coefficients;
  int64_t num_items;

  PairIds<Id> ids(int64_t begin, int64_t end) const {
    // The forward pass has checked the ids, but an op can be called alone.
    check_found(visit_rows(all, begin, end, num_items, [](int64_t) {}), num_items);
    return {all.pos + begin, all.extra + begin * all.m, all.m, all.negatives_of(begin), all.n};
  }
  const T* coefficients(int64_t begin, int64_t) const { return all_coefficients + begin * (1 + all.m + all.n); }
};

template <typename In>
cw_ext::SparseRows sparse_backward(const cw_ext::ItemGradientCall& call) {
  using T = typename Compute<In>::type;
  const int64_t num_items = call.items.size(0), rows = call.sources.size(0), width = call.coefficients.size(1);
  const int64_t shared = call.shared_ids.defined() ? call.shared_ids.size(0) : 0;
  ItemGradientTask<In> task;
  const Tensor sources = fill_sources(call, shared, task);
  const PairGrid grid = pair_grid(rows + shared, width, num_items);
  const auto sum = [&](const auto& pairs) {
    return sum_sparse<In>(task, call.items, grid, grain(grid.pairs_per_block()), [&] { return pairs; });
  };
  const T* const coefficients = pointer<const T>(call.coefficients);
  if (shared > 0) {
    const auto pairs = shared_pairs<T>(call, pointer<const T>(sources) + rows * task.padded_dim, task.padded_dim);
    const PairIds<int64_t> ids{pairs.pos_ids.data(), pairs.extra_ids.data(), width - 1};
    return sum(GivenPairs<int64_t, T>{ids, pairs.coefficients.data(), num_items});
  }
  const auto sum_given = [&](auto id) {
    using Id = decltype(id);
    const PairIds<Id> ids = pair_ids<Id>(call.pos_ids, call.extra_ids, call.neg_ids);
    return sum(GivenPairs<Id, T>{ids, coefficients, num_items});
  };
  return call.neg_ids.scalar_type() == kInt ? sum_given(int32_t{}) : sum_given(int64_t{});
}

}  // namespace

Tensor pair_keys(int64_t rows, int64_t width, const Tensor& like) {
  return cw_ext::empty_large({rows, width}, options_of(like, kShort));
}

Tensor pair_ends(int64_t rows, int64_t width, int64_t items, const Tensor& like) {
  const PairGrid grid = pair_grid(rows, width, items);
  return empty({grid.blocks, grid.buckets}, options_of(like, kInt));
}

void embeddings(const cw_ext::EmbeddingsCall& call) {
  if (call.dense) return dense_embeddings(call);
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    call.neg_ids.scalar_type() == kInt ? forward<In, int32_t>(call) : forward<In, int64_t>(call);
  });
}

void item_gradient(const cw_ext::ItemGradientCall& call) {
  if (call.dense) return dense_item_gradient(call);
  with_type(call.items.scalar_type(), [&](auto element) { backward<decltype(element)>(call); });
}

cw_ext::SparseRows sparse_item_gradient(const cw_ext::ItemGradientCall& call) {
  cw_ext::SparseRows result;
  with_type(call.items.scalar_type(), [&](auto element) { result = sparse_backward<decltype(element)>(call); });
  return result;
}

}  // namespace cw_cpu
