// SIMD vectors of the current instruction set, by the compilers' vector extensions. Included by kernels_impl.h, with
// CW_VECTOR_BYTES set to the width of a register.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../cw_row.h"
#include "kernels.h"

// A lambda that is called in a loop must be inlined, or the loop is not vectorised.
#define CW_INLINE_LAMBDA __attribute__((always_inline))
#define CW_NOINLINE __attribute__((noinline))

namespace cw_cpu {
namespace CW_ISA {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(CW_VECTOR_BYTES)));
};
template <typename T>
using Lanes = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = CW_VECTOR_BYTES / int(sizeof(T));

template <typename Vector>
CW_INLINE Vector load_vector(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename Vector>
CW_INLINE void store_vector(void* to, Vector x) {
  std::memcpy(to, &x, sizeof(x));
}

// Into the cache: `n` elements that are read soon. Rows of ids are too short for the processor to see them coming.
template <typename X>
CW_INLINE void prefetch_elements(const X* x, int64_t n) {
  const char* const bytes = reinterpret_cast<const char*>(x);
  for (int64_t i = 0; i < n * int64_t(sizeof(X)); i += 64) __builtin_prefetch(bytes + i);
}

template <typename T>
CW_INLINE void fill(T* x, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}

// ---- horizontal sums ------------------------------------------------------------------------------------------------

template <typename T>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};

// Lane i: a[i] + a[i ^ S] where i has not the bit S, b[i] + b[i ^ S] where it has.
template <int S, typename T, size_t... I>
CW_INLINE Lanes<T> add_halves(Lanes<T> a, Lanes<T> b, std::index_sequence<I...>) {
  constexpr int W = kLanes<T>;
#if defined(__clang__)
  const Lanes<T> own = __builtin_shufflevector(a, b, ((int(I) & S) ? W + int(I) : int(I))...);
  const Lanes<T> other = __builtin_shufflevector(a, b, ((int(I) & S) ? W + (int(I) ^ S) : (int(I) ^ S))...);
#else
  using Index = Lanes<typename IndexOf<T>::type>;
  const Lanes<T> own = __builtin_shuffle(a, b, Index{((int(I) & S) ? W + int(I) : int(I))...});
  const Lanes<T> other = __builtin_shuffle(a, b, Index{((int(I) & S) ? W + (int(I) ^ S) : (int(I) ^ S))...});
#endif
  return own + other;
}

// Lane i: the sum of the lanes of x[i]. Overwrites x [kLanes].
template <typename T, int S = kLanes<T> / 2>
CW_INLINE Lanes<T> sums_of(Lanes<T>* x) {
  for (int r = 0; r < S; ++r) x[r] = add_halves<S, T>(x[r], x[r + S], std::make_index_sequence<kLanes<T>>());
  if constexpr (S > 1) {
    return sums_of<T, S / 2>(x);
  } else {
    return x[0];
  }
}

template <typename T, int S = kLanes<T> / 2>
CW_INLINE T sum_of_lanes(Lanes<T> x) {
  x = add_halves<S, T>(x, x, std::make_index_sequence<kLanes<T>>());
  if constexpr (S > 1) {
    return sum_of_lanes<T, S / 2>(x);
  } else {
    return x[0];
  }
}

// ---- chunks of a row ------------------------------------------------------------------------------------------------

using Bits = Lanes<uint32_t>;

// A register full of elements, and the vectors of the compute type that they widen to. Element e of a chunk is at place(e) in
// those vectors.
template <typename In>
struct Chunk {
  using T = typename Compute<In>::type;
  using Raw = Bits;
  static constexpr int kElements = kLanes<T>;
  static constexpr int kVectors = 1;
  static CW_INLINE int place(int e) { return e; }
  static CW_INLINE void widen(Raw raw, Lanes<T>* x) { x[0] = (Lanes<T>)raw; }
};

// Even elements in one vector, odd elements in the other, which is cheaper than widening them in order.
template <>
struct Chunk<BFloat16> {
  using Raw = Bits;
  static constexpr int kElements = 2 * kLanes<float>;
  static constexpr int kVectors = 2;
  static CW_INLINE int place(int e) { return (e & 1) * kLanes<float> + (e >> 1); }
  static CW_INLINE void widen(Raw raw, Lanes<float>* x) {
    constexpr int kLow = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 1;
    x[kLow] = (Lanes<float>)(raw << 16);
    x[1 - kLow] = (Lanes<float>)(raw & 0xFFFF0000u);
  }
};

template <>
struct Chunk<Half> {
  typedef uint16_t Raw __attribute__((vector_size(CW_VECTOR_BYTES / 2)));
  static constexpr int kElements = kLanes<float>;
  static constexpr int kVectors = 1;
  static CW_INLINE int place(int e) { return e; }
  // As load(Half) in dtypes.h.
  static CW_INLINE void widen(Raw raw, Lanes<float>* x) {
    const Bits bits = __builtin_convertvector(raw, Bits);
    const Bits magnitude = bits & 0x7FFFu;
    const Lanes<float> finite = (Lanes<float>)(magnitude << 13) * 5.192296858534828e33f;
    const Bits special = (magnitude << 13) | 0x7F800000u;
    const Bits is_special = (Bits)(magnitude >= 0x7C00u);
    x[0] = (Lanes<float>)((special & is_special) | ((Bits)finite & ~is_special) | ((bits & 0x8000u) << 16));
  }
};

// The chunks of a row: whole ones, and a last one of which only the bits in `mask` count.
template <typename In>
struct Chunks {
  using Raw = typename Chunk<In>::Raw;
  int64_t whole;
  bool has_part;
  Raw mask;

  explicit CW_INLINE Chunks(int64_t dim) : whole(dim / Chunk<In>::kElements), has_part(dim % Chunk<In>::kElements != 0) {
    unsigned char bytes[sizeof(Raw)];
    const int64_t valid = dim % Chunk<In>::kElements * int64_t(sizeof(In));
    for (int64_t i = 0; i < int64_t(sizeof(Raw)); ++i) bytes[i] = i < valid ? 0xFF : 0;
    mask = load_vector<Raw>(bytes);
  }
  CW_INLINE int64_t vectors() const { return (whole + has_part) * Chunk<In>::kVectors; }
};

// A row of `dim` values in the order of chunks, padded with 0; `out` [vectors · kLanes].
template <typename In, typename T>
CW_INLINE void to_chunks(const T* x, int64_t dim, const Chunks<In>& chunks, T* out) {
  constexpr int E = Chunk<In>::kElements;
  const int64_t padded = (chunks.whole + chunks.has_part) * E;
  for (int64_t begin = 0; begin < padded; begin += E) {
    for (int e = 0; e < E; ++e) out[begin + Chunk<In>::place(e)] = begin + e < dim ? x[begin + e] : T(0);
  }
}

template <typename In, typename T>
CW_INLINE void from_chunks(const T* x, int64_t dim, T* out) {
  constexpr int E = Chunk<In>::kElements;
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i / E * E + Chunk<In>::place(int(i % E))];
}

}  // namespace CW_ISA
}  // namespace cw_cpu
