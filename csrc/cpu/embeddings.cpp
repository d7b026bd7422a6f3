// Level 2 on the CPU: rows in parallel forward, items in parallel backward.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <vector>

#include "dispatch.h"

namespace cw_cpu {

namespace {

// A table pass pays where the batch reads rows more often than the table has them.
at::Tensor inverse_norms_of(const at::Tensor& items, int64_t reads, at::ScalarType compute) {
  if (items.size(0) > reads) return {};
  at::Tensor result = at::empty({items.size(0)}, items.options().dtype(compute));
  with_type(items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    using T = typename Compute<In>::type;
    const In* const x = pointer<const In>(items);
    T* const out = pointer<T>(result);
    const int64_t dim = items.size(1);
    at::parallel_for(0, items.size(0), grain(dim), [&](int64_t begin, int64_t end) {
      CW_WITH_ISA(inverse_norms<In>(x, dim, out, begin, end));
    });
  });
  return result;
}

template <typename In, typename Id>
void forward(const cw_ext::EmbeddingsCall& call) {
  using T = typename Compute<In>::type;
  const int64_t rows = call.queries.size(0);
  const int64_t n = call.neg_ids.size(1), m = call.extra_ids.size(1);
  EmbeddingsTask<In, Id> task;
  task.arguments = call.arguments;
  task.queries = pointer<const In>(call.queries);
  task.items = pointer<const In>(call.items);
  task.num_items = call.items.size(0);
  task.dim = call.queries.size(1);
  task.pos_ids = pointer<const int64_t>(call.pos_ids);
  task.neg_ids = pointer<const Id>(call.neg_ids);
  task.n = n;
  task.extra_ids = pointer<const int64_t>(call.extra_ids);
  task.m = m;
  task.log_q = pointer<const T>(call.log_q);
  task.log_q_stride = call.log_q.defined() ? call.log_q.stride(0) : 0;
  task.prior = per_row<T>(call.prior);
  task.threshold = per_row<T>(call.threshold);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  const at::Tensor inverse_norms =
      call.normalized ? inverse_norms_of(call.items, rows * (1 + m + n), call.out.loss.scalar_type()) : at::Tensor();
  task.inverse_norms = pointer<const T>(inverse_norms);
  task.out = row_outputs<T>(call.out);
  task.unit_queries = call.with_gradients ? pointer<T>(call.unit_queries) : nullptr;
  task.d_queries = call.with_gradients ? pointer<T>(call.d_queries) : nullptr;
  task.coefficients = call.with_gradients ? pointer<T>(call.coefficients) : nullptr;

  std::mutex mutex;
  BadId bad;
  at::parallel_for(0, rows, grain((n + m) * task.dim), [&](int64_t begin, int64_t end) {
    const auto room = scratch<T>(embeddings_scratch(n, m, task.dim));
    const BadId found = CW_WITH_ISA(embeddings<In, Id>(task, begin, end, room.get()));
    if (!found.name) return;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!bad.name || found.row < bad.row) bad = found;  // the first, whatever the threads
  });
  TORCH_CHECK_INDEX(!bad.name, bad.name, " must be in [0, ", task.num_items, "), or −1 for padding, got ", bad.id,
                    " in row ", bad.row);
}

// Calls visit(place, id) for the pairs of rows [begin, end), in the layout of the coefficients.
template <typename Id, typename Visit>
void visit_pairs(const cw_ext::ItemGradientCall& call, int64_t begin, int64_t end, Visit&& visit) {
  const int64_t* const pos_ids = pointer<const int64_t>(call.pos_ids);
  const int64_t* const extra_ids = pointer<const int64_t>(call.extra_ids);
  const Id* const neg_ids = pointer<const Id>(call.neg_ids);
  const int64_t m = call.extra_ids.size(1);
  const int64_t n = call.neg_ids.defined() ? call.neg_ids.size(1) : 0;
  int64_t place = begin * (1 + m + n);
  for (int64_t b = begin; b < end; ++b) {
    visit(place++, pos_ids[b]);
    for (int64_t k = 0; k < m; ++k) visit(place++, extra_ids[b * m + k]);
    for (int64_t j = 0; j < n; ++j) visit(place++, int64_t(neg_ids[b * n + j]));
  }
}

// A stable counting sort of the pairs by item: after it, entries [offsets[i], offsets[i + 1]) of `order` are the places of
// item i's pairs, in increasing order. Each chunk of rows counts for itself, so the order is that of one thread.
template <typename Id, typename Place>
void sort_pairs(const cw_ext::ItemGradientCall& call, Place* order, int64_t* offsets) {
  const int64_t items = call.items.size(0), rows = call.pos_ids.size(0);
  const int64_t width = call.coefficients.size(1);
  const int64_t shared = call.shared_ids.defined() ? call.shared_ids.size(0) : 0;
  const int64_t* const shared_ids = pointer<const int64_t>(call.shared_ids);
  // More chunks than pairs can fill would only spread the counters.
  const int64_t chunks =
      std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows * width / std::max<int64_t>(1, items)));
  const int64_t step = (rows + chunks - 1) / chunks;
  std::vector<Place> counts(static_cast<size_t>(chunks * items), 0);
  // The forward pass has looked at the ids, but an op can be called alone.
  const auto in_range = [items](int64_t id) { return static_cast<uint64_t>(id) < static_cast<uint64_t>(items); };
  std::atomic<bool> outside{false};

  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      Place* const own = counts.data() + c * items;
      bool found = false;
      visit_pairs<Id>(call, std::min(rows, c * step), std::min(rows, (c + 1) * step), [&](int64_t, int64_t id) {
        if (in_range(id)) {
          ++own[id];
        } else {
          found |= id != -1;
        }
      });
      if (found) outside = true;
    }
  });
  Place* const last_counts = counts.data() + (chunks - 1) * items;
  for (int64_t j = 0; j < shared; ++j) {
    if (in_range(shared_ids[j])) {
      ++last_counts[shared_ids[j]];
    } else if (shared_ids[j] != -1) {
      outside = true;
    }
  }
  TORCH_CHECK_INDEX(!outside, "ids must be in [0, ", items, "), or −1 for padding");
  // From counts to the place where each chunk's next pair of an item goes.
  int64_t total = 0;
  for (int64_t i = 0; i < items; ++i) {
    offsets[i] = total;
    for (int64_t c = 0; c < chunks; ++c) {
      Place& own = counts[c * items + i];
      const int64_t count = own;
      own = Place(total);
      total += count;
    }
  }
  offsets[items] = total;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      Place* const next = counts.data() + c * items;
      visit_pairs<Id>(call, std::min(rows, c * step), std::min(rows, (c + 1) * step), [&](int64_t place, int64_t id) {
        if (in_range(id)) order[next[id]++] = Place(place);
      });
    }
  });
  for (int64_t j = 0; j < shared; ++j) {
    if (in_range(shared_ids[j])) order[last_counts[shared_ids[j]]++] = Place(rows * width + j);
  }
}

template <typename In, typename Id, typename Place>
void backward(const cw_ext::ItemGradientCall& call) {
  using T = typename Compute<In>::type;
  const int64_t items = call.items.size(0), dim = call.items.size(1);
  const int64_t pairs = call.coefficients.numel() + (call.shared_ids.defined() ? call.shared_ids.numel() : 0);
  const auto order = scratch<Place>(pairs);
  const auto offsets = scratch<int64_t>(items + 1);
  sort_pairs<Id, Place>(call, order.get(), offsets.get());

  ItemGradientTask<In, Place> task;
  task.items = pointer<const In>(call.items);
  task.dim = dim;
  task.normalized = call.normalized;
  task.sources = pointer<const T>(call.sources);
  task.coefficients = pointer<const T>(call.coefficients);
  task.rows = call.coefficients.size(0);
  task.width = call.coefficients.size(1);
  task.order = order.get();
  task.offsets = offsets.get();
  task.gradient = pointer<In>(call.gradient);
  // Items differ in popularity by orders of magnitude, so the parts are cut by work: a pair, or a row to write.
  const int64_t work = offsets[items] + items;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(work / grain(dim), at::get_num_threads() * 8));
  std::vector<int64_t> cuts(parts + 1, items);
  cuts[0] = 0;
  for (int64_t part = 1, i = 0; part < parts; ++part) {
    while (i < items && offsets[i] + i < part * work / parts) ++i;
    cuts[part] = i;
  }
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    const auto room = scratch<T>(item_gradient_scratch(dim));
    CW_WITH_ISA(item_gradient<In, Place>(task, cuts[first], cuts[last], room.get()));
  });
}

}  // namespace

void embeddings(const cw_ext::EmbeddingsCall& call) {
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    call.neg_ids.scalar_type() == at::kInt ? forward<In, int32_t>(call) : forward<In, int64_t>(call);
  });
}

void item_gradient(const cw_ext::ItemGradientCall& call) {
  const int64_t places = call.coefficients.numel() + (call.shared_ids.defined() ? call.shared_ids.numel() : 0);
  const bool small = places <= std::numeric_limits<uint32_t>::max();
  const bool int32_ids = call.neg_ids.defined() && call.neg_ids.scalar_type() == at::kInt;
  with_type(call.items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    if (small) {
      int32_ids ? backward<In, int32_t, uint32_t>(call) : backward<In, int64_t, uint32_t>(call);
    } else {
      int32_ids ? backward<In, int32_t, int64_t>(call) : backward<In, int64_t, int64_t>(call);
    }
  });
}

}  // namespace cw_cpu
