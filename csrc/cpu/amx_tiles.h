// The tiles of AMX: eight registers of 16 rows of 64 bytes, whose products of bf16 pairs are summed in fp32. No torch.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace cw_cpu {

constexpr int kAmxRows = 16;      // of a tile
constexpr int kAmxRowBytes = 64;  // 16 pairs, or 16 sums

// How many rows of how many bytes each tile has: ldtilecfg's operand.
struct alignas(64) AmxShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Whether there are such tiles, and the system lets this process use them, for which it has to be asked.
inline bool has_amx() {
  static const bool has = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
    if ((d & kBf16) == 0 || (d & kTiles) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}

// Assembly in place of intrinsics, so that a compiler need not be told that the processor has them.
struct AmxTiles {
  static void configure(const AmxShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  static void release() { asm volatile("tilerelease"); }
  template <int Tile>
  static void clear() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  // Rows that are `stride` bytes apart.
  template <int Tile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(Tile), "r"(from), "r"(stride) : "memory");
  }
  template <int Tile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(Tile), "r"(to), "r"(stride) : "memory");
  }
  // sum[r][c] += Σ_k a[r][k]·b[k][c], over both numbers of each pair.
  template <int Sum, int A, int B>
  static void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
};

}  // namespace cw_cpu
#endif
