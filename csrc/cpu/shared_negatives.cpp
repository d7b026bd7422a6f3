// Level 2 on the CPU where all rows share their negatives: blocks of rows in parallel, each a matrix product around level 1.
#include "../shared_negatives.h"


#include "../allocate.h"
#include "dispatch.h"

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
  fill_query_task(call, room, task);
  task.pos_ids = pointer<const int64_t>(call.pos_ids);
  task.extra_ids = pointer<const int64_t>(call.extra_ids);
  task.neg_ids = pointer<const int64_t>(call.neg_ids);
  task.num_items = call.items.size(0);
  task.any_padding = std::any_of(task.neg_ids, task.neg_ids + n, [](int64_t id) { return id < 0; });
  const auto& history = call.exclusion.history;
  task.first_column = pointer<const int32_t>(call.exclusion.first_column);
  task.next_column = pointer<const int32_t>(call.exclusion.next_column);
  task.histories = {pointer<const int64_t>(history.query_ids), pointer<const int64_t>(history.starts),
                    pointer<const int32_t>(history.known)};
  task.coefficients = pointer<T>(call.coefficients);
  task.shared_coefficients = pointer<T>(call.shared_coefficients);
  task.first_row = 0;
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
  const Tensor sums = room_per_row == dim ? call.negative_sums
                                              : at::zeros({n, room_per_row}, options_of(call.negative_sums));
  const int64_t at_once = std::min(rows, std::max(kRowStep, kScoresAtOnce / n / kRowStep * kRowStep));
  const Tensor kept = cw_ext::empty_large({at_once, n}, options_of(call.negative_sums));
  task.shared_coefficients = pointer<T>(kept);
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    task.first_row = first;
    run_rows(first, first + count);
    Tensor sources = call.unit_queries.narrow(0, first, count);
    if (call.row_factor.defined()) sources = sources * call.row_factor.narrow(0, first, count).unsqueeze(-1);
    weighted_sums(pointer<const T>(kept), count, n, pointer<const T>(sources), dim, T(call.scale), pointer<T>(sums),
                  room_per_row, true);
  }
  if (room_per_row != dim) call.negative_sums.copy_(sums.narrow(1, 0, dim));
}

}  // namespace

void shared_negatives(const cw_ext::SharedNegativesCall& call) {
  with_type(call.queries.scalar_type(), [&](auto element) { run<decltype(element)>(call); });
}

}  // namespace cw_cpu
