// From embeddings, each row with its own negatives: from tensors to pointers, as in scores.cpp.

#include <type_traits>

#include "tensors.h"

namespace cw_cuda {

namespace {

template <typename In>
void embeddings_of(const cw_ext::EmbeddingsCall& call) {
  using T = typename Compute<In>::type;
  EmbeddingsTask<In> task;
  task.arguments = call.loss.arguments;
  task.rows = call.queries.size(0);
  task.queries = input<In>(call.queries);
  task.items = input<In>(call.items);
  task.dim = call.queries.size(1);
  task.pairs = pairs_of(call.pos_ids, call.extra_ids, call.neg_ids, call.items.size(0));
  task.log_q = input<T>(call.log_q);
  task.log_q_stride = row_stride(call.log_q);
  task.values = row_inputs<T>(call.loss.values);
  task.curve = curve_input<T>(call.loss.curve);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.d_queries = output<T>(call.d_queries);
  task.unit_queries = output<T>(call.unit_queries);
  task.coefficients = output<T>(call.coefficients);
  const cudaStream_t stream = current_stream(call.queries);
  if constexpr (!std::is_same_v<In, double>) {
    if (goes_online(task)) {
      STD_CUDA_CHECK(launch_embeddings_online(task, stream));
      return;
    }
  }
  STD_CUDA_CHECK(embeddings_blocks(task, &task.blocks));
  CW_CHECK_VALUE(task.blocks > 0, "queries: an embedding dimension of ", task.dim,
                 " needs more shared memory than this GPU has");
  const Tensor scratch = empty({task.blocks, 1 + task.pairs.m + task.pairs.n}, options_of(call.out.loss));
  task.scratch = output<T>(scratch);
  STD_CUDA_CHECK(launch_embeddings(task, stream));
}

}  // namespace

Tensor pair_keys(int64_t, int64_t, const Tensor&) { return MaybeTensor(); }
Tensor pair_ends(int64_t, int64_t, int64_t, const Tensor&) { return MaybeTensor(); }

void embeddings(const cw_ext::EmbeddingsCall& call) {
  if (call.queries.size(0) == 0) return;
  const DeviceGuard guard(call.queries);
  with_type(call.queries.scalar_type(), [&](auto element) { embeddings_of<decltype(element)>(call); });
}

}  // namespace cw_cuda
