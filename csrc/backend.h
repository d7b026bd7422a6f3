// The backend of a library: these files are compiled once for the CPU's library and once, with CW_CUDA, for CUDA's.
#pragma once

#include "calls.h"

namespace cw_ext {

namespace backend = CW_BACKEND;

#ifdef CW_CUDA
constexpr bool kCuda = true;
#else
constexpr bool kCuda = false;
#endif

// CUDA threads emulated on the CPU (tests/build/cuda_emulation): that library stands alone, in the place of the CPU's.
#if defined(CW_CUDA) && !defined(CW_CUDA_EMULATION)
#define CW_DISPATCH_KEY CUDA
#else
#define CW_DISPATCH_KEY CPU
#endif

// CW_OPS(m.def("…"); m.def("…");): the schemas, which the CPU's library defines for both.
#if defined(CW_CUDA) && !defined(CW_CUDA_EMULATION)
#define CW_OPS(...)
#else
#define CW_OPS(...) \
  STABLE_TORCH_LIBRARY_FRAGMENT(cw_ext, m) { __VA_ARGS__ }
#endif

// CW_KERNELS(m.impl("…", TORCH_BOX(&f));): what runs them on the backend's tensors.
#define CW_KERNELS(...) CW_KERNELS_FOR(CW_DISPATCH_KEY, __VA_ARGS__)
#define CW_KERNELS_FOR(key, ...) \
  STABLE_TORCH_LIBRARY_IMPL(cw_ext, key, m) { __VA_ARGS__ }

}  // namespace cw_ext
