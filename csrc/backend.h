// The backend of a call, by the device of its tensors.
#pragma once

#include "calls.h"

namespace cw_ext {

// Whether the CUDA kernels run a call on this tensor.
inline bool on_cuda([[maybe_unused]] const at::Tensor& x) {
#ifdef CW_CUDA_EMULATION  // CUDA threads emulated on the CPU, which then has no kernels of its own: tests/build/cuda_emulation
  return true;
#else
  return x.is_cuda();
#endif
}

// Runs a function that both backends have, on the device of `tensor`.
#ifdef CW_WITH_CUDA
#define CW_RUN(tensor, ...) (cw_ext::on_cuda(tensor) ? cw_cuda::__VA_ARGS__ : cw_cpu::__VA_ARGS__)
#else
#define CW_RUN(tensor, ...) cw_cpu::__VA_ARGS__
#endif

// Registers the ops for the backends that this build has: CW_LIBRARY_IMPL(m.impl(…); m.impl(…);)
#ifdef CW_WITH_CUDA
#define CW_LIBRARY_IMPL(...)                      \
  TORCH_LIBRARY_IMPL(cw_ext, CPU, m) { __VA_ARGS__ }  \
  TORCH_LIBRARY_IMPL(cw_ext, CUDA, m) { __VA_ARGS__ }
#else
#define CW_LIBRARY_IMPL(...) \
  TORCH_LIBRARY_IMPL(cw_ext, CPU, m) { __VA_ARGS__ }
#endif

}  // namespace cw_ext
