// Stands in for torch's header of this name.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(EXPR)                                                                        \
  do {                                                                                              \
    const cudaError_t cw_error = (EXPR);                                                            \
    TORCH_CHECK(cw_error == cudaSuccess, "CUDA emulation error: ", cudaGetErrorString(cw_error));   \
  } while (false)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
