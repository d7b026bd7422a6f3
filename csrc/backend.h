// The backend of a call, by the device of its tensors.
#pragma once

#include "calls.h"

namespace cw_ext {

// Whether the CUDA kernels run a call on this tensor.
inline bool on_cuda([[maybe_unused]] const at::Tensor& x) {
#ifdef CW_CUDA_EMULATION  // their threads emulated on the CPU, which has no kernels of its own then: tests/cuda_emulation
  return true;
#else
  return x.is_cuda();
#endif
}

void run_scores(const ScoresCall& call);
void run_embeddings(const EmbeddingsCall& call);
void run_item_gradient(const ItemGradientCall& call);
struct SharedNegativesCall;
void run_shared_negatives(const SharedNegativesCall& call);

}  // namespace cw_ext
