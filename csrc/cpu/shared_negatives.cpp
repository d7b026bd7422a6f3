// From embeddings on the CPU, all rows sharing their negatives: blocks of rows in parallel, each a product
// around the scores kernel.
#include "../shared_negatives.h"

#include <algorithm>
#include <numeric>

#include "../allocate.h"
#include "shared_chunks.h"

namespace cw_cpu {

namespace {

// How many score gradients are kept at a time, if not all: 32 MB in fp32.
constexpr int64_t kScoresAtOnce = int64_t(1) << 23;

template <typename In>
void run(const cw_ext::SharedNegativesCall& call) {
  using T = typename Compute<In>::type;
  const int64_t rows = call.queries.size(0), n = call.neg_ids.size(0), m = call.extra_ids.size(1);
  std::vector<In> room;
  SharedTask<In> task;
  fill_shared_task(call, room, task);
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  const int64_t dim = task.items.dim, panels = (n + kPanel - 1) / kPanel, dim_panels = (dim + kPanel - 1) / kPanel;
  const auto columns = scratch<T>(panels * kPanel * dim), packed_rows = scratch<T>(dim_panels * kPanel * n);
  task.columns = columns.get();
  task.rows = packed_rows.get();
  parallel_for(0, panels, grain(kPanel * dim), [&](int64_t begin, int64_t end) {
    CW_WITH_ISA(pack_shared<In>(task, begin, end));
  });

  const auto run_rows = [&](int64_t first_row, int64_t last_row) {
    const int64_t steps = (last_row - first_row + kRowStep - 1) / kRowStep;
    parallel_for(0, steps, grain(kRowStep * n * dim), [&](int64_t first, int64_t last) {
      const auto own = scratch<T>(shared_scratch(n, m, dim));
      CW_WITH_ISA(shared_negatives<In>(task, first_row + first * kRowStep,
                                       std::min(last_row, first_row + last * kRowStep), own.get()));
    });
  };
  if (!call.negative_sums.defined()) return run_rows(0, rows);

  // With room for whole panels behind each row.
  const int64_t room_per_row = dim_panels * kPanel;
  Tensor sums = call.negative_sums;
  if (room_per_row != dim) sums = zeros({n, room_per_row}, options_of(call.negative_sums));
  const int64_t at_once = std::min(rows, std::max(kRowStep, kScoresAtOnce / n / kRowStep * kRowStep));
  const Tensor kept = cw_ext::empty_large({at_once, n}, options_of(call.negative_sums));
  task.shared_coefficients = pointer<T>(kept);
  const T* const factors = pointer<const T>(call.row_factor);
  const auto scaled = scratch<T>(factors ? at_once * dim : 0);
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    task.first_row = first;
    run_rows(first, first + count);
    const T* sources = pointer<const T>(call.unit_queries) + first * dim;
    if (factors) {
      for (int64_t b = 0; b < count; ++b) {
        std::transform(sources + b * dim, sources + (b + 1) * dim, scaled.get() + b * dim,
                       [f = factors[first + b]](T x) { return x * f; });
      }
      sources = scaled.get();
    }
    weighted_sums(pointer<const T>(kept), count, n, sources, dim, T(call.scale), pointer<T>(sums), room_per_row, true);
  }
  if (room_per_row == dim) return;
  const T* const from = pointer<const T>(sums);
  T* const to = pointer<T>(call.negative_sums);
  for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * room_per_row, dim, to + i * dim);
}

}  // namespace

void shared_negatives(const cw_ext::SharedNegativesCall& call) {
  if (goes_in_chunks(call)) return shared_chunks(call);
  with_type(call.queries.scalar_type(), [&](auto element) { run<decltype(element)>(call); });
}

cw_ext::Exclusion columns_by_item(const Tensor& ids, int64_t) {
  const int64_t n = ids.size(0), slots = int64_t(1) << slot_bits(n);
  const Tensor first = empty({slots}, options_of(ids, kInt)), next = empty({n}, options_of(ids, kInt));
  int32_t* const firsts = pointer<int32_t>(first);
  int32_t* const nexts = pointer<int32_t>(next);
  const ColumnsByItem columns{firsts, nexts, pointer<const int64_t>(ids), slot_bits(n)};
  std::fill_n(firsts, slots, -1);
  std::fill_n(nexts, n, -1);
  for (int64_t c = n - 1; c >= 0; --c) {
    if (columns.items[c] < 0) continue;
    int32_t& slot = firsts[columns.slot_of(columns.items[c])];
    nexts[c] = slot;
    slot = int32_t(c);
  }
  return {first, next, {}};
}

Catalogue catalogue(int64_t num_items, const cw_ext::Device& device) {
  const Tensor ids = empty({num_items}, Options{kLong, device});
  std::iota(pointer<int64_t>(ids), pointer<int64_t>(ids) + num_items, int64_t(0));
  cw_ext::Exclusion exclusion;
  exclusion.catalogue = true;
  return {ids, exclusion};
}

}  // namespace cw_cpu
