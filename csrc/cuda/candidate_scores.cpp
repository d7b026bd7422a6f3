// Scores of given items, without a loss: from tensors to pointers, as in scores.cpp.

#include "tensors.h"

namespace cw_cuda {

namespace {

template <typename In>
void scores_of(const cw_ext::CandidateScoresCall& call) {
  using T = typename Compute<In>::type;
  CandidateScoresTask<In> task;
  task.queries = input<In>(call.queries);
  task.items = input<In>(call.items);
  task.num_items = call.items.size(0);
  task.ids = call.ids.const_data_ptr();
  task.wide_ids = call.ids.scalar_type() == kLong;
  task.rows = call.ids.size(0);
  task.k = call.ids.size(1);
  task.dim = call.queries.size(1);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.out = output<T>(call.out);
  const cudaError_t error = launch_candidate_scores(task, current_stream(call.queries));
  CW_CHECK_VALUE(error != cudaErrorInvalidConfiguration, "queries: an embedding dimension of ", task.dim,
                 " needs more shared memory than this GPU has");
  STD_CUDA_CHECK(error);
}

}  // namespace

void candidate_scores(const cw_ext::CandidateScoresCall& call) {
  const DeviceGuard guard(call.queries);
  with_type(call.queries.scalar_type(), [&](auto element) { scores_of<decltype(element)>(call); });
}

}  // namespace cw_cuda
