// Sampled on the CPU: embeddings with negatives that each block of rows draws for itself, in forward and again in backward,
// so that only a few blocks of them are in memory at a time.
#include <mutex>

#include "../allocate.h"
#include "dense.h"
#include "embedding_tasks.h"
#include "unsorted_pairs.h"

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

// Where the item gradient's pairs come from: drawn again, with the coefficients that forward kept or with new ones.
template <typename In>
class DrawnPairs {
 public:
  using T = typename Compute<In>::type;

  DrawnPairs(const cw_ext::SampledItemGradientCall& call, const EmbeddingsTask<In, int32_t>& task, int64_t rows)
      : task_(task),
        num_items_(call.gradient.items.size(0)),
        n_(call.draws.n),
        width_(1 + task.ids.m + n_),
        kept_(pointer<const T>(call.gradient.coefficients)),
        drawn_(call.draws, rows, !kept_),
        room_(kept_ ? 0 : n_, kept_ ? 0 : task.ids.m, kept_ ? 0 : call.gradient.items.size(1)),
        own_(scratch<T>(kept_ ? 0 : rows * width_)) {}

  PairIds<int32_t> ids(int64_t begin, int64_t end) {
    // The forward pass has checked the ids, but an op can be called alone.
    check_found(visit_rows(task_.ids, begin, end, num_items_, [](int64_t) {}), num_items_);
    drawn_.draw(begin, end);
    return {task_.ids.pos + begin, task_.ids.extra + begin * task_.ids.m, task_.ids.m, drawn_.ids.get(), n_};
  }

  const T* coefficients(int64_t begin, int64_t end) {
    if (kept_) return kept_ + begin * width_;
    CW_WITH_ISA(embeddings<In, int32_t>(drawn_.given_to(task_, begin), begin, end, own_.get(), room_.pointers()));
    return own_.get();
  }

 private:
  const EmbeddingsTask<In, int32_t>& task_;
  int64_t num_items_, n_, width_;
  const T* kept_;
  Drawn<In> drawn_;
  EmbeddingsRoom<In> room_;
  Scratch<T> own_;
};

// sum(task, grid, grain, make) of these pairs, as unsorted_pairs.h takes them.
template <typename In, typename Sum>
auto backward(const cw_ext::SampledItemGradientCall& call, const Sum& sum) {
  const cw_ext::ItemGradientCall& gradient = call.gradient;
  const int64_t rows = gradient.sources.size(0), num_items = gradient.items.size(0), dim = gradient.items.size(1);
  const bool kept = gradient.coefficients.defined();
  std::vector<In> last_rows;
  EmbeddingsTask<In, int32_t> task;
  const Tensor norms = kept ? Tensor() : fill_task(call.rows, call.draws.n, last_rows, task);
  if (kept) task.ids = pair_ids<int32_t>(gradient.pos_ids, gradient.extra_ids, Tensor());
  const PairGrid grid = pair_grid(rows, 1 + task.ids.m + call.draws.n, num_items);
  ItemGradientTask<In> sums;
  const Tensor sources = fill_item_task(gradient, 0, sums);
  return sum(sums, grid, grain(grid.pairs_per_block() * (kept ? 1 : dim)), [&] {
    return DrawnPairs<In>(call, task, grid.rows_per_block);
  });
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
  with_type(call.gradient.items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    backward<In>(call, [&](const auto& task, const PairGrid& grid, int64_t grain, const auto& make) {
      sum_unsorted<In>(task, grid, call.gradient.gradient, grain, make);
    });
  });
}

cw_ext::SparseRows sparse_sampled_item_gradient(const cw_ext::SampledItemGradientCall& call) {
  cw_ext::SparseRows result;
  with_type(call.gradient.items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    result = backward<In>(call, [&](const auto& task, const PairGrid& grid, int64_t grain, const auto& make) {
      return sum_sparse<In>(task, call.gradient.items, grid, grain, make);
    });
  });
  return result;
}

}  // namespace cw_cpu
