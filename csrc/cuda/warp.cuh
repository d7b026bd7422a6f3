// What the kernels share for parts of a row: loads, reductions, and groups of lanes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace cw_cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kVectorBytes = 16;
constexpr int64_t kMaxGrid = 0x7fffffff;  // of blocks along x

// ---- loads and stores -----------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_compute(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void from_compute(int32_t x, int32_t& to) { to = x; }
__device__ __forceinline__ void from_compute(float x, float& to) { to = x; }
__device__ __forceinline__ void from_compute(double x, double& to) { to = x; }
__device__ __forceinline__ void from_compute(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_compute(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// V elements that move in one instruction.
template <typename E, int V>
struct alignas(V * sizeof(E)) Chunk {
  E x[V];
};

template <int V, typename E>
__device__ __forceinline__ Chunk<E, V> load_chunk(const E* from) {
  return *reinterpret_cast<const Chunk<E, V>*>(from);
}

// The longest chunk of V elements of type E: 16 bytes.
template <int V, typename E>
constexpr int piece_of() {
  return V * int(sizeof(E)) > kVectorBytes ? kVectorBytes / int(sizeof(E)) : V;
}

template <int V, typename E, typename T>
__device__ __forceinline__ void load(const E* from, T (&to)[V]) {
  constexpr int kPiece = piece_of<V, E>();
#pragma unroll
  for (int i = 0; i < V; i += kPiece) {
    const Chunk<E, kPiece> piece = load_chunk<kPiece>(from + i);
#pragma unroll
    for (int k = 0; k < kPiece; ++k) to[i + k] = to_compute(piece.x[k]);
  }
}

template <int V, typename E, typename T>
__device__ __forceinline__ void store(const T (&from)[V], E* to) {
  constexpr int kPiece = piece_of<V, E>();
#pragma unroll
  for (int i = 0; i < V; i += kPiece) {
    Chunk<E, kPiece> piece;
#pragma unroll
    for (int k = 0; k < kPiece; ++k) from_compute(from[i + k], piece.x[k]);
    *reinterpret_cast<Chunk<E, kPiece>*>(to + i) = piece;
  }
}

__host__ __device__ __forceinline__ bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

// Whether rows of `dim` elements, one after the other from `p`, can be read 16 bytes at a time.
template <typename E>
__host__ __device__ __forceinline__ bool rows_are_aligned(const E* p, int64_t dim) {
  return is_aligned(p) && dim * int64_t(sizeof(E)) % kVectorBytes == 0;
}

// 1/√squared; 0 of 0.
__device__ __forceinline__ float inverse_norm(float squared) { return squared == 0.0f ? 0.0f : rsqrtf(squared); }
__device__ __forceinline__ double inverse_norm(double squared) { return squared == 0.0 ? 0.0 : 1.0 / std::sqrt(squared); }

// The larger one; NaN where either is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return a > b || a != a ? a : b;
#endif
}
__device__ __forceinline__ double max_or_nan(double a, double b) { return a > b || a != a ? a : b; }

// ---- lanes ----------------------------------------------------------------------------------------------------------

// A warp cut into groups, one row of chunks to each: the smallest power of two that gives every chunk a lane.
struct Lanes {
  int size;   // lanes in a group
  int rank;   // this lane's place in its group
  int group;  // this lane's group
  int count;  // groups in the warp

  __device__ explicit Lanes(int64_t chunks) {
    size = 1;
    while (size < chunks && size < kWarp) size *= 2;
    const int lane = int(threadIdx.x) % kWarp;
    rank = lane % size;
    group = lane / size;
    count = kWarp / size;
  }

  // Σ over the lanes of a group, to all of them. All lanes of the warp must be there.
  template <typename T>
  __device__ __forceinline__ T sum_in_group(T x) const {
    for (int offset = size / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
  }

  // Σ over the groups, lane rank by lane rank, to all of them.
  template <typename T>
  __device__ __forceinline__ T sum_over_groups(T x) const {
    for (int offset = size; offset < kWarp; offset *= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
  }
};

// ---- teams ----------------------------------------------------------------------------------------------------------

// The threads of one row: all kWarps warps of a block, or, with one warp, any warp of it.
template <int kWarps>
struct Team {
  static constexpr int kThreads = kWarps * kWarp;

  __device__ __forceinline__ static int rank() { return int(threadIdx.x); }

  __device__ __forceinline__ static void sync() {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Σ over the team, the same to every thread. `scratch` [kWarps] is shared; no thread may still be reading it.
  template <typename T>
  __device__ __forceinline__ static T sum(T x, T* scratch) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    if constexpr (kWarps > 1) {
      if (rank() % kWarp == 0) scratch[rank() / kWarp] = x;
      __syncthreads();
      x = T(0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) x += scratch[w];
      __syncthreads();
    }
    return x;
  }
};

// ---- launches -------------------------------------------------------------------------------------------------------

// A block's dynamic shared memory. Outside nvcc the threads are emulated (tests/build/cuda_emulation).
#if defined(__CUDACC__)
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#else
extern unsigned char dynamic_shared[];
#endif

__host__ __device__ inline int64_t blocks_of(int64_t work, int64_t per_block) {
  return (work + per_block - 1) / per_block;
}

// For kernels that loop over what a grid of this size leaves over.
inline unsigned grid_of(int64_t work, int64_t per_block) {
  const int64_t blocks = blocks_of(work, per_block);
  return static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
}

// As kernel<<<grid, block, shared_bytes, stream>>>(arguments…), in plain C++.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Dynamic shared memory that a block of any kernel here can ask for.
inline cudaError_t most_shared_memory(size_t* bytes) {
  constexpr int kStatic = 12 * 1024;  // more than any kernel here has of its own
  int device, most;
  if (const auto error = cudaGetDevice(&device)) return error;
  if (const auto error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
  *bytes = size_t(most - kStatic);
  return cudaSuccess;
}

// Shared memory beyond the 48 KB that every kernel gets must be requested. All is requested, so that calls of different
// sizes do not change each other's limit.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
  constexpr size_t kAlways = 32 * 1024;  // leaves room for the static part
  if (bytes <= kAlways) return cudaSuccess;
  size_t most;
  if (const auto error = most_shared_memory(&most)) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(most));
}

}  // namespace cw_cuda
