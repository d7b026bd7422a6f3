// Embeddings and sampled on the CPU, where the items are few: blocks of rows in parallel, each a product
// around the scores kernel.
#include "dense.h"

#include <algorithm>
#include <mutex>

#include "../allocate.h"
#include "embedding_tasks.h"
#include "packed_items.h"

namespace cw_cpu {

namespace {

// Everything but the coefficients.
template <typename In, typename Id>
void fill_dense_task(const cw_ext::EmbeddingsCall& call, std::vector<In>& room, DenseTask<In, Id>& task) {
  fill_query_task(call, room, task);
  task.n = call.items.size(0);
  task.ids = pair_ids<Id>(call.pos_ids, call.extra_ids, call.neg_ids);
  task.item_log_q = nullptr;
  task.coefficients = nullptr;
  task.first_row = 0;
}

template <typename In>
void give_draws(const cw_ext::Draws& draws, DenseTask<In, int32_t>& task) {
  task.ids.n = draws.n;
  task.source = source_of(draws);
  task.item_log_q = pointer<const typename Compute<In>::type>(draws.log_weights);
}

// Rows [first_row, last_row).
template <typename In, typename Id>
void run_rows(const DenseTask<In, Id>& task, int64_t first_row, int64_t last_row) {
  using T = typename Compute<In>::type;
  const int64_t items = task.n, dim = task.items.dim, draws = task.ids.n;
  const int64_t step = dense_step(items), steps = (last_row - first_row + step - 1) / step;
  PairIds<Id> given = task.ids;  // which may be out of range
  if (!given.neg) given.n = 0;
  std::mutex mutex;
  BadId bad;
  parallel_for(0, steps, grain(step * items * dim), [&](int64_t first, int64_t last) {
    const auto room = scratch<T>(dense_scratch(items, task.m, dim));
    const auto integers = scratch<int32_t>(dense_integers(items, draws));
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = first_row + k * step, end = std::min(last_row, begin + step);
      if (CW_WITH_ISA(dense<In, Id>(task, begin, end, room.get(), integers.get()))) continue;
      BadId found = visit_rows(given, begin, end, items, [](int64_t) {});
      if (!found.name) found = {"an item of the table of popularities", begin, items};
      const std::lock_guard<std::mutex> lock(mutex);
      note_first(found, bad);
      return;
    }
  });
  check_found(bad, items);
}

template <typename In, typename Id>
void forward(const cw_ext::EmbeddingsCall& call, const cw_ext::Draws* draws) {
  using T = typename Compute<In>::type;
  std::vector<In> room;
  DenseTask<In, Id> task;
  fill_dense_task(call, room, task);
  if constexpr (std::is_same_v<Id, int32_t>) {
    if (draws) give_draws(*draws, task);
  }
  task.coefficients = pointer<T>(call.coefficients);
  const PackedItems<T> packed(task.items, task.n, task.normalized, task.scale, task.d_queries != nullptr);
  task.columns = packed.columns.get();
  task.rows = packed.rows.get();
  run_rows(task, 0, call.queries.size(0));
}

// The gradient from coefficients of some rows at a time, of which add(sums) adds the sums by item.
template <typename In, typename Add>
void finish(const cw_ext::ItemGradientCall& call, Add add) {
  using T = typename Compute<In>::type;
  const int64_t items = call.items.size(0), dim = call.items.size(1);
  const int64_t stride = panels_of<T>(dim) * ProductTask<T>::kPanel;  // weighted_sums() writes whole panels
  const auto sums = scratch<T>(items * stride);
  add(sums.get(), stride);
  const FinishItemsTask<In> task{pointer<const In>(call.items), dim, call.normalized, sums.get(), stride,
                                 pointer<In>(call.gradient)};
  parallel_for(0, items, grain(dim), [&](int64_t begin, int64_t end) {
    const auto unit = scratch<T>(dim);
    CW_WITH_ISA(finish_items<In>(task, begin, end, unit.get()));
  });
}

template <typename In>
void backward(const cw_ext::ItemGradientCall& call) {
  using T = typename Compute<In>::type;
  finish<In>(call, [&](T* sums, int64_t stride) {
    weighted_sums(pointer<const T>(call.coefficients), call.sources.size(0), call.items.size(0),
                  pointer<const T>(call.sources), call.items.size(1), T(1), sums, stride);
  });
}

// Computes the coefficients again, of a bounded part of the rows at a time.
template <typename In>
void backward_again(const cw_ext::SampledItemGradientCall& call) {
  using T = typename Compute<In>::type;
  const cw_ext::ItemGradientCall& gradient = call.gradient;
  const int64_t rows = gradient.sources.size(0), items = gradient.items.size(0), dim = gradient.items.size(1);
  std::vector<In> room;
  DenseTask<In, int32_t> task;
  fill_dense_task(call.rows, room, task);
  give_draws(call.draws, task);
  const PackedItems<T> packed(task.items, items, task.normalized, task.scale, task.d_queries != nullptr);
  task.columns = packed.columns.get();
  task.rows = packed.rows.get();
  const int64_t at_once = std::min(rows, std::max<int64_t>(1, kPairsAtOnce / items / kDepth) * kDepth);
  const Tensor kept = cw_ext::empty_large({at_once, items}, options_of(gradient.sources));
  task.coefficients = pointer<T>(kept);
  finish<In>(gradient, [&](T* sums, int64_t stride) {
    for (int64_t first = 0; first < rows; first += at_once) {
      const int64_t last = std::min(rows, first + at_once);
      task.first_row = first;
      run_rows(task, first, last);
      weighted_sums(task.coefficients, last - first, items, pointer<const T>(gradient.sources) + first * dim, dim, T(1),
                    sums, stride, first > 0);
    }
  });
}

}  // namespace

void dense_embeddings(const cw_ext::EmbeddingsCall& call) {
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    call.neg_ids.scalar_type() == kInt ? forward<In, int32_t>(call, nullptr) : forward<In, int64_t>(call, nullptr);
  });
}

void dense_item_gradient(const cw_ext::ItemGradientCall& call) {
  with_type(call.items.scalar_type(), [&](auto element) { backward<decltype(element)>(call); });
}

void dense_sampled(const cw_ext::SampledCall& call) {
  with_type(call.rows.queries.scalar_type(),
            [&](auto element) { forward<decltype(element), int32_t>(call.rows, &call.draws); });
}

void dense_sampled_item_gradient(const cw_ext::SampledItemGradientCall& call) {
  if (call.gradient.coefficients.defined()) return dense_item_gradient(call.gradient);
  with_type(call.gradient.items.scalar_type(), [&](auto element) { backward_again<decltype(element)>(call); });
}

}  // namespace cw_cpu
