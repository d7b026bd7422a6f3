// Stands in for CUDA's header of this name: half precision as storage, and its conversions.
#pragma once

#include "cuda_runtime_api.h"

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half x) { return float(__builtin_bit_cast(_Float16, x.bits)); }
inline __half __float2half_rn(float x) { return {__builtin_bit_cast(unsigned short, _Float16(x))}; }

inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
