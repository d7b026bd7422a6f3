// The CPU kernels for AVX2. The headers come before the pragma: what they define is shared with all other code, and must
// run on any machine.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define CW_NAMESPACE cw_avx2
#define CW_ISA isa_avx2
#define CW_VECTOR_BYTES 32
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
