// A matrix product in register tiles. Included by kernels_impl.h.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "simd.h"

#if CW_VECTOR_BYTES == 64 && defined(__x86_64__) && defined(__linux__)
#define CW_WITH_AMX
#include "amx_product_kernel.h"
#endif

namespace cw_cpu {
namespace CW_ISA {

// Rows of a tile: with two vectors of columns each, their sums fill all but a few registers.
constexpr int kTileRows = CW_VECTOR_BYTES == 64 ? 12 : 6;

template <typename T>
CW_INLINE void add_product(Lanes<T>& sum, Lanes<T> x, T factor) {
  sum += x * factor;
}

#if CW_VECTOR_BYTES == 64
// Needs AVX512_BF16, which no code but what is called here may use. Assembly, as compilers do not agree on an intrinsic's types.
CW_INLINE void add_product(Lanes<float>& sum, Bits x, Pair factor) {
  const Bits factors = Bits{} + factor.bits;
  asm("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(factors), "v"(x));
}

// `to` [2·kLanes / 2] = the next 2·kLanes numbers.
CW_INLINE void to_pairs(const float* x, Pair* to) {
  Bits pairs;
  asm("vcvtne2ps2bf16 %1, %2, %0"
      : "=v"(pairs)
      : "v"(load_vector<Lanes<float>>(x)), "v"(load_vector<Lanes<float>>(x + kLanes<float>)));
  store_vector(to, pairs);
}
#endif

template <typename Operand>
using OperandLanes = Lanes<std::conditional_t<std::is_same_v<Operand, Pair>, uint32_t, Operand>>;

// R rows of c += a[:, first:last] · panel[first:last]. AcrossRows: a_row_stride is 1, else a_stride is. Either constant leaves
// the compiler enough registers for addresses.
template <int R, bool AcrossRows, typename T, typename Operand>
CW_INLINE void product_tile(const ProductTask<T, Operand>& task, const Operand* a, const Operand* panel, int64_t first,
                            int64_t last, T* c) {
  constexpr int W = kLanes<T>, V = ProductTask<T>::kPanel / W;
  constexpr int kApart = 3;  // rows that are reached from one pointer
  using Vector = OperandLanes<Operand>;
  const int64_t stride = AcrossRows ? task.a_stride : task.a_row_stride;
  // Two vectors of a panel at a time.
  for (int v = 0; v < V; v += 2) {
    for (int r = 0; r < R; ++r) {
      for (int w = v; w < v + 2; ++w) __builtin_prefetch(c + r * task.c_stride + w * W);
    }
    Lanes<T> sum[R][2] = {};  // not c itself: the shorter the sums, the smaller the rounding errors
    const Operand* rows[(R + kApart - 1) / kApart];
    for (int r = 0; r < R; r += kApart) rows[r / kApart] = a + r * stride + first;
    const Operand* across = a + first * stride;
    for (int64_t k = first; k < last; ++k) {
      const Vector x = load_vector<Vector>(panel + k * ProductTask<T>::kPanel + v * W);
      const Vector y = load_vector<Vector>(panel + k * ProductTask<T>::kPanel + (v + 1) * W);
      // What the next rows read, which would come from afar.
      if (AcrossRows) __builtin_prefetch(across + 64 / sizeof(Operand));
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Operand factor = AcrossRows ? across[r] : rows[r / kApart][r % kApart * stride];
        add_product(sum[r][0], x, factor);
        add_product(sum[r][1], y, factor);
      }
      if (AcrossRows) {
        across += stride;
      } else {
#pragma GCC unroll 4
        for (int r = 0; r < R; r += kApart) ++rows[r / kApart];
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      T* const to = c + r * task.c_stride + v * W;
      store_vector(to, load_vector<Lanes<T>>(to) + sum[r][0]);
      store_vector(to + W, load_vector<Lanes<T>>(to + W) + sum[r][1]);
    }
  }
}

// Rows [begin, end). The sums are in the order of k, kDepth at a time, independent of the range of rows.
template <bool AcrossRows, typename T, typename Operand>
void product_in_tiles(const ProductTask<T, Operand>& task, int64_t begin, int64_t end) {
  for (int64_t i = begin; !task.accumulate && i < end; ++i) {
    fill(task.c + i * task.c_stride, task.panels * ProductTask<T>::kPanel, T(0));
  }
  for (int64_t first = 0; first < task.depth; first += kDepth) {
    const int64_t last = first + kDepth < task.depth ? first + kDepth : task.depth;
    for (int64_t p = 0; p < task.panels; ++p) {
      const Operand* const panel = task.b + p * task.depth * ProductTask<T>::kPanel;
      int64_t i = begin;
      const auto tiles = [&](auto rows) CW_INLINE_LAMBDA {
        constexpr int R = decltype(rows)::value;
        for (; i + R <= end; i += R) {
          product_tile<R, AcrossRows>(task, task.a + i * task.a_row_stride, panel, first, last,
                          task.c + i * task.c_stride + p * ProductTask<T>::kPanel);
        }
      };
      tiles(std::integral_constant<int, kTileRows>());
      tiles(std::integral_constant<int, 4>());
      tiles(std::integral_constant<int, 1>());
    }
  }
}

template <typename T, typename Operand>
void product_of(const ProductTask<T, Operand>& task, int64_t begin, int64_t end) {
#if defined(CW_WITH_AMX)
  if constexpr (std::is_same_v<Operand, Pair>) {
    if (has_amx()) return amx_product<AmxTiles>(task, begin, end);
  }
#endif
  task.a_row_stride == 1 ? product_in_tiles<true>(task, begin, end) : product_in_tiles<false>(task, begin, end);
}

template <typename T>
void product(const ProductTask<T>& task, int64_t begin, int64_t end) {
  product_of(task, begin, end);
}

}  // namespace CW_ISA
}  // namespace cw_cpu
