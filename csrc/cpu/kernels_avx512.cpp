// The CPU kernels for AVX-512. The headers come before the pragma: what they define is shared with all other code, and must
// run on any machine.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "amx_tiles.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#endif

#define CW_NAMESPACE cw_avx512
#define CW_ISA isa_avx512
#define CW_VECTOR_BYTES 64
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
