// From scores: from a call's tensors to a task of pointers, on the tensors' device and the current stream. Nothing here waits
// for the device.
#include "tensors.h"

namespace cw_cuda {

namespace {

template <typename In>
void scores_of(const cw_ext::ScoresCall& call) {
  using T = typename Compute<In>::type;
  ScoresTask<In> task;
  task.arguments = call.loss.arguments;
  task.rows = call.pos.size(0);
  task.pos = input<In>(call.pos);
  task.pos_stride = row_stride(call.pos);
  task.neg = input<In>(call.neg);
  task.neg_stride = row_stride(call.neg);
  task.n = call.neg.size(1);
  task.extra = input<In>(call.extra);
  task.extra_stride = row_stride(call.extra);
  task.m = call.extra.defined() ? call.extra.size(1) : 0;
  task.log_q = input<T>(call.log_q);
  task.log_q_stride = row_stride(call.log_q);
  task.row_scale = input<T>(call.row_scale);
  task.column_scale = input<T>(call.column_scale);
  task.excluded = input<int32_t>(call.excluded);
  task.values = row_inputs<T>(call.loss.values);
  task.curve = curve_input<T>(call.loss.curve);
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_pos = output<T>(call.d_pos);
  task.d_neg = output<typename Kept<In>::type>(call.d_neg);
  task.d_extra = output<T>(call.d_extra);
  STD_CUDA_CHECK(launch_scores(task, current_stream(call.pos)));
}

}  // namespace

void scores(const cw_ext::ScoresCall& call) {
  if (call.pos.numel() == 0) return;
  const DeviceGuard guard(call.pos);
  with_type(call.pos.scalar_type(), [&](auto element) { scores_of<decltype(element)>(call); });
}

}  // namespace cw_cuda
