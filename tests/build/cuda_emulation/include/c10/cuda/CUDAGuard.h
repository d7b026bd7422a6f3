// Stands in for torch's header of this name: the emulated device is the CPU, where nothing is to be switched.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
  CUDAGuard(const CUDAGuard&) = delete;
};

}  // namespace c10::cuda
