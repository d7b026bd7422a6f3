// Kernels with a planted fault each, and some without: what the emulation and the sanitizers must see, and must not.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

namespace cw_cuda {
extern unsigned char dynamic_shared[];
}

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffffu;

using Kernel = void(float* data, int n);

__device__ int next_thread() { return int(threadIdx.x + 1) % kThreads; }
__device__ int place() { return int(kThreads * blockIdx.x + threadIdx.x); }

// ---- races ---------------------------------------------------------------------------------------------------------

__global__ void barrier(float* data, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  data[place()] = shared[next_thread()];
}

__global__ void no_barrier(float* data, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = float(threadIdx.x);
  data[place()] = shared[next_thread()];
}

__global__ void no_barrier_before_reuse(float* data, int) {
  __shared__ float shared[kThreads];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    data[place()] = shared[next_thread()];
  }
}

__global__ void warp_barrier(float* data, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  data[place()] = shared[threadIdx.x ^ 1];
}

// A barrier of the warp does not order the other warp.
__global__ void warp_barrier_across_warps(float* data, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  data[place()] = shared[next_thread()];
}

// A shuffle orders no memory.
__global__ void shuffle_for_barrier(float* data, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = __shfl_xor_sync(kAll, float(threadIdx.x), 1);
  data[place()] = __shfl_xor_sync(kAll, shared[threadIdx.x ^ 1], 1);
}

__global__ void blocks_meet(float* data, int) {
  if (threadIdx.x == blockIdx.x) data[0] += 1;
}

__global__ void atomics(float* data, int) { atomicAdd(data, 1.0f); }

// The last block to come adds up what the others have left.
__global__ void last_block(float* data, int) {
  __shared__ bool last;
  data[1 + place()] = 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(reinterpret_cast<int*>(data), 1) == int(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) {
    for (unsigned i = 1; i <= kThreads * gridDim.x; ++i) data[i] += 1;
  }
}

__global__ void last_block_without_fence(float* data, int) {
  __shared__ bool last;
  data[1 + place()] = 1;
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(reinterpret_cast<int*>(data), 1) == int(gridDim.x) - 1;
  __syncthreads();
  if (last && threadIdx.x == 0) {
    for (unsigned i = 1; i <= kThreads * gridDim.x; ++i) data[i] += 1;
  }
}

// ---- bounds --------------------------------------------------------------------------------------------------------

__global__ void reads_past_input(float* data, int n) {
  if (threadIdx.x == 0) data[0] = data[n];
}

__global__ void writes_past_shared(float* data, int n) {
  __shared__ float shared[kThreads];
  float* const volatile first = shared;  // so that only the address tells
  first[threadIdx.x + unsigned(n > 0)] = float(threadIdx.x);
  __syncthreads();
  data[threadIdx.x] = shared[threadIdx.x];
}

__global__ void writes_past_dynamic_shared(float*, int) {
  // As many as there are threads were asked for.
  reinterpret_cast<float*>(cw_cuda::dynamic_shared)[threadIdx.x + 1] = 0;
}

__global__ void misaligned(float* data, int) {
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(data + 1) = float4{};
}

// ---- meetings ------------------------------------------------------------------------------------------------------

__global__ void barrier_for_some(float*, int) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void barriers_apart(float*, int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_for_some(float* data, int) {
  if (threadIdx.x % 2 == 0) data[threadIdx.x] = __shfl_xor_sync(kAll, float(threadIdx.x), 1);
}

__global__ void shuffle_outside_mask(float* data, int) {
  if (threadIdx.x == 0) data[0] = __shfl_sync(1u, 1.0f, 1);
}

// ---- what has not been written -------------------------------------------------------------------------------------

__global__ void unwritten(float* data, int) {
  __shared__ float shared[kThreads];
  if (threadIdx.x > 0) shared[threadIdx.x] = 1;
  data[place()] = shared[threadIdx.x];
}

__global__ void copy_not_waited_for(float* data, int n) {
  auto* const shared = reinterpret_cast<float*>(cw_cuda::dynamic_shared);
  __pipeline_memcpy_async(shared + threadIdx.x, data + place(), sizeof(float));
  __pipeline_commit();
  if (n == 0) __pipeline_wait_prior(0);
  data[place()] = shared[threadIdx.x];
}

__global__ void copy(float* data, int) {
  auto* const shared = reinterpret_cast<float*>(cw_cuda::dynamic_shared);
  __pipeline_memcpy_async(shared + threadIdx.x, data + place(), sizeof(float));
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  data[place()] = shared[next_thread()];
}

const struct {
  const char* name;
  Kernel* kernel;
} kKernels[] = {
#define CW_KERNEL(name) {#name, name}
    CW_KERNEL(barrier),
    CW_KERNEL(no_barrier),
    CW_KERNEL(no_barrier_before_reuse),
    CW_KERNEL(warp_barrier),
    CW_KERNEL(warp_barrier_across_warps),
    CW_KERNEL(shuffle_for_barrier),
    CW_KERNEL(blocks_meet),
    CW_KERNEL(atomics),
    CW_KERNEL(last_block),
    CW_KERNEL(last_block_without_fence),
    CW_KERNEL(reads_past_input),
    CW_KERNEL(writes_past_shared),
    CW_KERNEL(writes_past_dynamic_shared),
    CW_KERNEL(misaligned),
    CW_KERNEL(barrier_for_some),
    CW_KERNEL(barriers_apart),
    CW_KERNEL(shuffle_for_some),
    CW_KERNEL(shuffle_outside_mask),
    CW_KERNEL(unwritten),
    CW_KERNEL(copy_not_waited_for),
    CW_KERNEL(copy),
#undef CW_KERNEL
};

}  // namespace

// Runs the kernel of this name on three blocks, and returns whether it left a NaN.
int main(int argc, char** argv) {
  for (const auto& [name, kernel] : kKernels) {
    if (argc != 2 || std::strcmp(name, argv[1]) != 0) continue;
    std::vector<float> data(3 * kThreads + 1, 0.0f);
    cudaLaunchConfig_t config{};
    config.gridDim = 3;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = kThreads * sizeof(float);
    if (cudaLaunchKernelEx(&config, kernel, data.data(), int(data.size())) != cudaSuccess) return 3;
    bool nan = false;
    for (const float x : data) nan |= x != x;
    std::puts(nan ? "NaN" : "no NaN");
    return 0;
  }
  return 2;
}
