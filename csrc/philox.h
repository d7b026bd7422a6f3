// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):
// a number is a function of its key and its place in the stream, on any device and by any thread. Host and device.
#pragma once

#include "kernel_types.h"

namespace CW_NAMESPACE {

// Numbers of 32 bits. Word is uint32_t, or uint64_t for vectors, in which processors multiply to 64 bits; its upper halves
// are meaningless before the last step.
template <typename Word>
struct Philox {
  Word x[4];
};

template <typename Word>
CW_INLINE Philox<Word> philox(Word c0, Word c1, Word c2, Word c3, uint64_t key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(uint32_t(c0)) * kMultiplier0;
    const uint64_t product1 = uint64_t(uint32_t(c2)) * kMultiplier1;
    c0 = Word(product1 >> 32) ^ c1 ^ k0;
    c1 = Word(product1);
    c2 = Word(product0 >> 32) ^ c3 ^ k1;
    c3 = Word(product0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {{Word(uint32_t(c0)), Word(uint32_t(c1)), Word(uint32_t(c2)), Word(uint32_t(c3))}};
}

}  // namespace CW_NAMESPACE
