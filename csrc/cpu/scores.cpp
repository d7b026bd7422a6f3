// From scores on the CPU: rows in parallel.
#include "dispatch.h"

namespace cw_cpu {

void scores(const cw_ext::ScoresCall& call) {
  with_type(call.pos.scalar_type(), [&](auto element) {
    using In = decltype(element);
    using T = typename Compute<In>::type;
    ScoresTask<In> task;
    task.arguments = call.loss.arguments;
    task.pos = pointer<const In>(call.pos);
    task.pos_stride = call.pos.stride(0);
    task.neg = pointer<const In>(call.neg);
    task.neg_stride = call.neg.stride(0);
    task.n = call.neg.size(1);
    task.extra = pointer<const In>(call.extra);
    task.extra_stride = call.extra.defined() ? call.extra.stride(0) : 0;
    task.m = call.extra.defined() ? call.extra.size(1) : 0;
    task.log_q = pointer<const T>(call.log_q);
    task.log_q_stride = call.log_q.defined() ? call.log_q.stride(0) : 0;
    task.values = row_inputs<T>(call.loss.values);
    task.curve = curve_pointers<T>(call.loss.curve);
    task.out = row_outputs<T>(call.out);
    task.d_pos = call.with_gradients ? pointer<T>(call.d_pos) : nullptr;
    task.d_neg = pointer<T>(call.d_neg);
    task.d_extra = pointer<T>(call.d_extra);
    parallel_for(0, call.pos.size(0), grain(task.n + task.m), [&](int64_t begin, int64_t end) {
      const auto room = scratch<T>(scores_scratch(task.n, task.m));
      CW_WITH_ISA(scores<In>(task, begin, end, room.get()));
    });
  });
}

}  // namespace cw_cpu
