// Stands in for CUDA's header of this name: what the host side of csrc/cuda uses. ../emulation.h explains the purpose.
#pragma once

#include <cstddef>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "invalid argument";
  }
}
// A launch reports its own errors, and runs until it is done.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// ---- a small device: loops over what a grid leaves over have something to do ----------------------------------------

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

namespace cw_emulation {

constexpr int kProcessors = 3;
constexpr int kBlocksPerProcessor = 2;
constexpr int kSharedBytes = 48 * 1024;          // what every kernel may have
constexpr int kSharedBytesOptin = 227 * 1024;    // and what it may ask for
constexpr int kStaticSharedBytes = 8 * 1024;     // taken to be static in every kernel

// The dynamic part that a kernel may have.
void allow_shared_bytes(const void* kernel, int bytes);
int allowed_shared_bytes(const void* kernel);

}  // namespace cw_emulation

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = cw_emulation::kSharedBytes;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = cw_emulation::kProcessors;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cw_emulation::kSharedBytesOptin;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->sharedSizeBytes = cw_emulation::kStaticSharedBytes;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || bytes > cw_emulation::kSharedBytesOptin - cw_emulation::kStaticSharedBytes) {
    return cudaErrorInvalidValue;
  }
  cw_emulation::allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads, size_t bytes) {
  const int allowed = cw_emulation::allowed_shared_bytes(reinterpret_cast<const void*>(kernel));
  *blocks = threads <= 1024 && bytes <= size_t(allowed) ? cw_emulation::kBlocksPerProcessor : 0;
  return cudaSuccess;
}
