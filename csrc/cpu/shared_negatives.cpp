// Level 2 on the CPU where all rows share their negatives: blocks of rows in parallel, each a matrix product around level 1.
#include "../shared_negatives.h"

#include <ATen/Parallel.h>

#include "dispatch.h"

namespace cw_cpu {

void shared_negatives(const cw_ext::SharedNegativesCall& call) {
  const int64_t rows = call.queries.size(0), n = call.neg_ids.size(0), m = call.extra_ids.size(1);
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    using T = typename Compute<In>::type;
    std::vector<In> room;
    SharedTask<In> task;
    fill_query_task(call, room, task);
    task.pos_ids = pointer<const int64_t>(call.pos_ids);
    task.extra_ids = pointer<const int64_t>(call.extra_ids);
    task.neg_ids = pointer<const int64_t>(call.neg_ids);
    task.any_padding = std::any_of(task.neg_ids, task.neg_ids + n, [](int64_t id) { return id < 0; });
    task.coefficients = call.with_gradients ? pointer<T>(call.coefficients) : nullptr;
    task.shared_coefficients = call.with_gradients ? pointer<T>(call.shared_coefficients) : nullptr;
    constexpr int64_t kPanel = ProductTask<T>::kPanel;
    const int64_t dim = task.items.dim, panels = (n + kPanel - 1) / kPanel, dim_panels = (dim + kPanel - 1) / kPanel;
    const auto columns = scratch<T>(panels * kPanel * dim), packed_rows = scratch<T>(dim_panels * kPanel * n);
    task.columns = columns.get();
    task.rows = packed_rows.get();
    at::parallel_for(0, panels, grain(kPanel * dim), [&](int64_t begin, int64_t end) {
      CW_WITH_ISA(pack_shared<In>(task, begin, end));
    });
    const int64_t steps = (rows + kRowStep - 1) / kRowStep;
    at::parallel_for(0, steps, grain(kRowStep * n * dim), [&](int64_t first, int64_t last) {
      const auto own = scratch<T>(shared_scratch(n, m, dim));
      CW_WITH_ISA(shared_negatives<In>(task, first * kRowStep, std::min(rows, last * kRowStep), own.get()));
    });
  });
}

}  // namespace cw_cpu
