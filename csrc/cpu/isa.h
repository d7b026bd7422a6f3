// The instruction set that the CPU kernels use. No torch.
#pragma once

#include <cstdlib>
#include <string>

namespace cw_cpu {

enum class Isa { any, avx2, avx512 };

// The same choice as ATen's (aten/src/ATen/native/DispatchStub.cpp), whose variable ATEN_CPU_CAPABILITY lowers both; read
// once.
inline Isa isa() {
  static const Isa chosen = [] {
#if defined(__x86_64__)
    const char* const asked = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string most = asked ? asked : "";
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (most == "default") return Isa::any;
    if (avx512 && most != "avx2") return Isa::avx512;
    if (avx2) return Isa::avx2;
#endif
    return Isa::any;
  }();
  return chosen;
}

// Whether there are products of bf16 numbers summed in fp32, beside the AVX-512 that the kernels use.
inline bool has_bf16_products() {
#if defined(__x86_64__)
  return isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

inline const char* name_of(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "default";
}

}  // namespace cw_cpu
