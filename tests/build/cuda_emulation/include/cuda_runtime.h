// Stands in for CUDA's header of this name: what the kernels of csrc/cuda use. ../emulation.h explains the purpose.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../emulation.h"
#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
// Blocks run one after the other, so that they can all have the same memory. build.py brings it together in a section,
// which the emulation fills anew for each block.
#define __shared__ static

// ---- where a thread is ---------------------------------------------------------------------------------------------

using cw_emulation::blockDim;
using cw_emulation::blockIdx;
using cw_emulation::gridDim;
using cw_emulation::threadIdx;
constexpr int warpSize = cw_emulation::kWarp;

// ---- launches ------------------------------------------------------------------------------------------------------

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto enter = [&] { kernel(Parameters(arguments)...); };
  return cw_emulation::launch(*config, reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__,
                              [](const void* context) { (*static_cast<decltype(enter)*>(context))(); }, &enter);
}

// ---- barriers and collectives --------------------------------------------------------------------------------------

#define CW_WHERE const std::source_location where = std::source_location::current()

inline void __syncthreads(CW_WHERE) { cw_emulation::meet_block(where); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CW_WHERE) {
  cw_emulation::meet_warp({cw_emulation::Kind::sync, mask, 0, 0, 0, where});
}

namespace cw_emulation {

template <typename T>
T exchange(Kind kind, unsigned mask, T value, int operand, int width, const std::source_location& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  bits = meet_warp({kind, mask, bits, operand, width, where});
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace cw_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::shuffle, mask, value, lane, width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::shuffle_xor, mask, value, bits, width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = warpSize, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::shuffle_down, mask, value, delta, width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = warpSize, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::shuffle_up, mask, value, delta, width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CW_WHERE) {
  return unsigned(cw_emulation::meet_warp({cw_emulation::Kind::ballot, mask, predicate != 0, 0, 0, where}));
}
inline int __any_sync(unsigned mask, int predicate, CW_WHERE) { return __ballot_sync(mask, predicate, where) != 0; }
inline int __all_sync(unsigned mask, int predicate, CW_WHERE) { return __ballot_sync(mask, predicate, where) == mask; }

inline int __reduce_max_sync(unsigned mask, int value, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::max_int, mask, value, 0, 0, where);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::max_unsigned, mask, value, 0, 0, where);
}
inline int __reduce_add_sync(unsigned mask, int value, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::add, mask, value, 0, 0, where);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, CW_WHERE) {
  return cw_emulation::exchange(cw_emulation::Kind::add, mask, value, 0, 0, where);
}

#undef CW_WHERE

// ---- memory --------------------------------------------------------------------------------------------------------

// Real atomics, so that a race detector knows them as such; and, as CUDA's, without any order for the memory around.
template <typename T>
T atomicAdd(T* to, T value) {
  cw_emulation::perhaps_yield();
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
  } else {
    T before;
    __atomic_load(to, &before, __ATOMIC_RELAXED);
    T after = before + value;
    while (!__atomic_compare_exchange(to, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      after = before + value;
    }
    return before;
  }
}

inline void __threadfence() { cw_emulation::fence(); }
inline void __threadfence_block() { cw_emulation::fence(); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}
template <typename T>
void __stcg(T* to, T value) {
  *to = value;
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

// ---- vectors -------------------------------------------------------------------------------------------------------

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
