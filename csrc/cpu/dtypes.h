// The element types, to and from the type that a row is computed in, one element at a time. Included by kernels_impl.h.
#pragma once

#include "../cw_row.h"
#include "kernels.h"

namespace cw_cpu {
namespace CW_ISA {

CW_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

CW_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

CW_INLINE float load(float x) { return x; }
CW_INLINE double load(double x) { return x; }
CW_INLINE float load(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
CW_INLINE float load(Half x) {
  // Moved into fp32's exponent range by one multiplication, which also handles denormals; ∞ and NaN by a select.
  const uint32_t magnitude = x.bits & 0x7FFFu;
  const float finite = from_bits(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  const float special = from_bits(0x7F800000u | (magnitude << 13));
  const float value = magnitude >= 0x7C00u ? special : finite;
  return from_bits(to_bits(value) | (uint32_t(x.bits & 0x8000u) << 16));
}

CW_INLINE void store(float x, float& to) { to = x; }
CW_INLINE void store(double x, double& to) { to = x; }
CW_INLINE void store(float x, BFloat16& to) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  to.bits = uint16_t(x == x ? rounded : 0x7FC0u);
}
CW_INLINE void store(float x, Half& to) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000u;
  const uint32_t magnitude = to_bits(x) & 0x7FFFFFFFu;
  // Normal numbers: the exponent moved, the mantissa rounded to nearest even. Overflow becomes ∞.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormals: adding ½ lines the mantissa's last bit up with fp16's, and the addition rounds.
  const uint32_t denormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t bits = magnitude < 0x38800000u ? denormal : normal;
  bits = magnitude >= 0x47800000u ? 0x7C00u : bits;
  bits = magnitude > 0x7F800000u ? 0x7E00u : bits;
  to.bits = uint16_t(sign | bits);
}

// The row in the compute type: itself, or a copy in `buffer`.
CW_INLINE const float* in_compute_type(const float* x, int64_t, float*) { return x; }
CW_INLINE const double* in_compute_type(const double* x, int64_t, double*) { return x; }
template <typename In>
CW_INLINE const float* in_compute_type(const In* x, int64_t n, float* buffer) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) buffer[i] = load(x[i]);
  return buffer;
}

}  // namespace CW_ISA
}  // namespace cw_cpu
