// Level 3 on the CPU: level 2 with negatives that each block of rows draws for itself, in forward and again in backward, so
// that only a few blocks of them are in memory at a time.
#include <mutex>
#include <type_traits>

#include "../allocate.h"
#include "dense.h"
#include "embedding_tasks.h"

namespace cw_cpu {

namespace {

// A thread's memory for a block: its negatives and their log weights.
template <typename In>
struct Drawn {
  using T = typename Compute<In>::type;
  const cw_ext::Draws& draws;
  cw_ext::NegativeSource source;
  const T* log_weights;
  Scratch<int32_t> ids;
  Scratch<T> log_q;
  Scratch<uint32_t> filter = scratch<uint32_t>(kFilterWords);

  Drawn(const cw_ext::Draws& d, int64_t rows, bool with_log_weights)
      : draws(d),
        source(source_of(d)),
        log_weights(with_log_weights ? pointer<const T>(d.log_weights) : nullptr),
        ids(scratch<int32_t>(rows * d.n)),
        log_q(scratch<T>(log_weights ? rows * d.n : 0)) {}

  void draw(int64_t begin, int64_t end) {
    CW_WITH_ISA(draw_rows(source, draws.n, begin, end, ids.get(), filter.get()));
    if (log_weights) CW_WITH_ISA(look_up<T>(log_weights, ids.get(), (end - begin) * draws.n, log_q.get()));
  }
  // The task with these as the negatives of the rows from `begin` on.
  EmbeddingsTask<In, int32_t> given_to(EmbeddingsTask<In, int32_t> task, int64_t begin) const {
    task.n = task.ids.n = draws.n;
    task.ids.neg = ids.get();
    task.ids.first = begin;
    task.log_q = log_weights ? log_q.get() : nullptr;
    task.log_q_stride = draws.n;
    return task;
  }
};

// The task without its negatives. It points into `room` and the returned tensor.
template <typename In>
Tensor fill_task(const cw_ext::EmbeddingsCall& call, int64_t n, std::vector<In>& room,
                     EmbeddingsTask<In, int32_t>& task) {
  using T = typename Compute<In>::type;
  fill_query_task(call, room, task);
  task.ids = pair_ids<int32_t>(call.pos_ids, call.extra_ids, Tensor());
  const int64_t reads = call.queries.size(0) * (1 + call.extra_ids.size(1) + n);
  Tensor norms = call.normalized ? inverse_norms_of(call.items, reads, call.out.loss.scalar_type()) : Tensor();
  task.inverse_norms = pointer<const T>(norms);
  return norms;
}

template <typename In>
void forward(const cw_ext::SampledCall& call) {
  using T = typename Compute<In>::type;
  const cw_ext::EmbeddingsCall& batch = call.rows;
  const int64_t rows = batch.queries.size(0), num_items = batch.items.size(0), dim = batch.items.size(1);
  const int64_t n = call.draws.n, m = batch.extra_ids.size(1);
  const PairGrid grid = pair_grid(rows, 1 + m + n, num_items);
  std::vector<In> last_rows;
  EmbeddingsTask<In, int32_t> task;
  const Tensor norms = fill_task(batch, n, last_rows, task);
  T* const kept = pointer<T>(batch.coefficients);

  std::mutex mutex;
  BadId bad;
  parallel_for(0, grid.blocks, grain(grid.pairs_per_block() * dim), [&](int64_t first, int64_t last) {
    const EmbeddingsRoom<In> room(n, m, dim);
    const auto own = scratch<T>(batch.with_gradients && !kept ? grid.pairs_per_block() : 0);
    Drawn<In> drawn(call.draws, grid.rows_per_block, true);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * grid.rows_per_block, end = begin + grid.rows_in(block);
      const BadId found = visit_rows(task.ids, begin, end, num_items, [](int64_t) {});
      if (found.name) {
        const std::lock_guard<std::mutex> lock(mutex);
        note_first(found, bad);
        return;
      }
      drawn.draw(begin, end);
      T* const coefficients = kept ? kept + begin * grid.width : batch.with_gradients ? own.get() : nullptr;
      CW_WITH_ISA(embeddings<In, int32_t>(drawn.given_to(task, begin), begin, end, coefficients, room.pointers()));
    }
  });
  check_found(bad, num_items);
}

template <typename In>
void backward(const cw_ext::SampledItemGradientCall& call) {
  using T = typename Compute<In>::type;
  const cw_ext::ItemGradientCall& gradient = call.gradient;
  const int64_t rows = gradient.sources.size(0), num_items = gradient.items.size(0), dim = gradient.items.size(1);
  const int64_t n = call.draws.n, m = gradient.extra_ids.size(1);
  const PairGrid grid = pair_grid(rows, 1 + m + n, num_items);
  const T* const kept = pointer<const T>(gradient.coefficients);
  std::vector<In> last_rows;
  EmbeddingsTask<In, int32_t> task;
  const Tensor norms = kept ? Tensor() : fill_task(call.rows, n, last_rows, task);
  if (kept) task.ids = pair_ids<int32_t>(gradient.pos_ids, gradient.extra_ids, Tensor());

  ItemGradientTask<In> sums;
  const Tensor sources = fill_item_task(gradient, 0, sums);
  const T* const all_sources = sums.sources;
  const int64_t at_once = std::min(grid.blocks_at_once, grid.blocks), parts = (grid.blocks + at_once - 1) / at_once;
  Tensor high, low;  // [I, D] T, the sums from part to part
  if (parts > 1) {
    high = gradient.gradient;
    if constexpr (!std::is_same_v<In, T>) high = empty(gradient.items.sizes(), options_of(sources));
    low = empty(high.sizes(), options_of(high));
  }
  const auto options = options_of(gradient.sources);
  const int64_t pairs = std::min(at_once * grid.pairs_per_block(), rows * grid.width);
  const Tensor coefficients = cw_ext::empty_large({pairs}, options);
  const Tensor keys = cw_ext::empty_large({pairs}, options.with(kShort));
  const Tensor ends = empty({at_once, grid.buckets}, options.with(kInt));
  sums.coefficients = pointer<const T>(coefficients);
  sums.keys = pointer<const PairKey>(keys);
  sums.ends = pointer<const int32_t>(ends);

  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first_block = part * at_once, count = std::min(at_once, grid.blocks - first_block);
    parallel_for(0, count, grain(grid.pairs_per_block() * (kept ? 1 : dim)), [&](int64_t first, int64_t last) {
      const EmbeddingsRoom<In> room(n, m, kept ? 0 : dim);
      const auto own = scratch<T>(kept ? 0 : grid.pairs_per_block());
      const auto sort_room = scratch<SortedPair<T>>(grid.pairs_per_block());
      Drawn<In> drawn(call.draws, grid.rows_per_block, !kept);
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = (first_block + k) * grid.rows_per_block, end = begin + grid.rows_in(first_block + k);
        PairIds<int32_t> ids = task.ids;
        // The forward pass has checked the ids, but an op can be called alone.
        check_found(visit_rows(ids, begin, end, num_items, [](int64_t) {}), num_items);
        drawn.draw(begin, end);
        if (!kept) {
          CW_WITH_ISA(embeddings<In, int32_t>(drawn.given_to(task, begin), begin, end, own.get(), room.pointers()));
        }
        PairGrid block = grid;
        block.rows = end - begin;
        block.blocks = 1;
        ids = {ids.pos + begin, ids.extra + begin * m, m, drawn.ids.get(), n};
        int32_t* const own_ends = pointer<int32_t>(ends) + k * grid.buckets;
        const int64_t base = k * grid.pairs_per_block();
        count_block(ids, block, 0, num_items, own_ends);
        sort_block(ids, block, 0, kept ? kept + begin * grid.width : own.get(), own_ends, sort_room.get(),
                   pointer<PairKey>(keys) + base, pointer<T>(coefficients) + base);
      }
    });
    const int64_t first_row = first_block * grid.rows_per_block;
    sums.sources = all_sources + first_row * sums.padded_dim;
    sums.grid = grid;
    sums.grid.rows = std::min(rows - first_row, count * grid.rows_per_block);
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

}  // namespace

void draw(const cw_ext::Draws& draws, const Tensor& out) {
  const cw_ext::NegativeSource source = source_of(draws);
  int32_t* const to = pointer<int32_t>(out);
  parallel_for(0, out.size(0), grain(draws.n), [&](int64_t begin, int64_t end) {
    const auto filter = scratch<uint32_t>(kFilterWords);
    CW_WITH_ISA(draw_rows(source, draws.n, begin, end, to + begin * draws.n, filter.get()));
  });
}

void sampled(const cw_ext::SampledCall& call) {
  if (call.rows.dense) return dense_sampled(call);
  with_type(call.rows.queries.scalar_type(), [&](auto element) { forward<decltype(element)>(call); });
}

void sampled_item_gradient(const cw_ext::SampledItemGradientCall& call) {
  if (call.gradient.dense) return dense_sampled_item_gradient(call);
  with_type(call.gradient.items.scalar_type(), [&](auto element) { backward<decltype(element)>(call); });
}

}  // namespace cw_cpu
