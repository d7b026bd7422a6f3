// Rows of a table by their ids: scores against a query, and weighted sums. Included by kernels_impl.h.
#pragma once

#include "dtypes.h"
#include "simd.h"

namespace cw_cpu {
namespace CW_ISA {

using namespace CW_NAMESPACE;

template <typename In, typename T>
CW_INLINE T squared_norm(const In* x, int64_t dim) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < dim; ++i) sum += T(load(x[i])) * T(load(x[i]));
  return sum;
}

template <typename T>
CW_INLINE T inverse_norm(T squared) {
  return squared == T(0) ? T(0) : T(1) / std::sqrt(squared);
}

// Rows handled at a time, so that their loads overlap.
constexpr int kGroup = 4;

template <typename In, typename T>
struct Gather {
  Table<In> table;
  const T* known_inverse_norms;  // [I] or null: computed with the scores
  bool normalized;
  Chunks<In> chunks;

  Gather(const Table<In>& t, const T* norms, bool unit)
      : table(t), known_inverse_norms(norms), normalized(unit), chunks(t.dim) {}

  // Padding reads item 0.
  CW_INLINE const In* row(int64_t id) const {
    const int64_t i = id < 0 ? 0 : id;
    return i < table.readable ? table.rows + i * table.dim : table.last_rows + (i - table.readable) * table.dim;
  }

  CW_INLINE void prefetch(const In* x) const {
    const char* const bytes = reinterpret_cast<const char*>(x);
    for (int64_t i = 0; i < table.dim * int64_t(sizeof(In)); i += 64) __builtin_prefetch(bytes + i);
  }

  // Calls visit(chunk number, raw(row pointer)) for the whole chunks, then for the partial one.
  template <typename Visit>
  CW_INLINE void each_chunk(Visit visit) const {
    using Raw = typename Chunk<In>::Raw;
    for (int64_t c = 0; c < chunks.whole; ++c) {
      visit(c, [=](const In* x) CW_INLINE_LAMBDA { return load_vector<Raw>(x + c * Chunk<In>::kElements); });
    }
    if (chunks.has_part) {
      const int64_t c = chunks.whole;
      const Raw mask = chunks.mask;
      visit(c, [=](const In* x) CW_INLINE_LAMBDA { return load_vector<Raw>(x + c * Chunk<In>::kElements) & mask; });
    }
  }

  // dots[r] and, with Norms, squares[r]: vectors whose lanes add up to q·x_r and |x_r|², r < kGroup.
  template <bool Norms>
  CW_INLINE void dots(const T* q, const In* const* x, Lanes<T>* dots, Lanes<T>* squares) const {
    Lanes<T> dot[kGroup] = {}, square[kGroup] = {};
    each_chunk([&](int64_t c, auto raw) CW_INLINE_LAMBDA {
      constexpr int V = Chunk<In>::kVectors;
      Lanes<T> wide[V];
      for (int r = 0; r < kGroup; ++r) {
        Chunk<In>::widen(raw(x[r]), wide);
        for (int v = 0; v < V; ++v) {
          dot[r] += wide[v] * load_vector<Lanes<T>>(q + (c * V + v) * kLanes<T>);
          if (Norms) square[r] += wide[v] * wide[v];
        }
      }
    });
    for (int r = 0; r < kGroup; ++r) {
      dots[r] = dot[r];
      if (Norms) squares[r] = square[r];
    }
  }

  template <bool Norms, typename Id>
  void scores_of(const T* q, const Id* ids, const In* const* x, int64_t n, T scale, T* scores, T* inverse) const {
    constexpr int W = kLanes<T>;
    constexpr int kRows = W < kGroup ? kGroup : W;
    for (int64_t j = 0; j < n && j < kRows; ++j) prefetch(x[j]);
    for (int64_t j = 0; j < n; j += kRows) {
      const int count = int(n - j < kRows ? n - j : kRows);
      const In* few[kRows];
      const In* const* now = x + j;
      if (count < kRows) {
        for (int r = 0; r < kRows; ++r) few[r] = x[j + (r < count ? r : 0)];
        now = few;
      } else {
        for (int64_t r = j + kRows; r < j + 2 * kRows && r < n; ++r) prefetch(x[r]);
      }
      Lanes<T> dot[kRows], square[kRows];
      for (int g = 0; g < kRows; g += kGroup) dots<Norms>(q, now + g, dot + g, square + g);
      T sums[kRows], units[kRows];
      for (int g = 0; g < kRows; g += W) {
        store_vector(sums + g, sums_of<T>(dot + g));
        if (Norms) store_vector(units + g, sums_of<T>(square + g));
      }
      if (Norms) {
#pragma omp simd
        for (int r = 0; r < kRows; ++r) units[r] = inverse_norm(units[r]);
      } else {
        for (int r = 0; r < kRows; ++r) units[r] = T(1);
        for (int r = 0; r < count && normalized; ++r) units[r] = known_inverse_norms[ids[j + r] < 0 ? 0 : ids[j + r]];
      }
      for (int r = 0; r < kRows; ++r) sums[r] *= scale * units[r];
      for (int r = 0; r < count; ++r) {
        inverse[j + r] = units[r];
        scores[j + r] = sums[r];
      }
    }
  }

  // x[j], the row of ids[j]; scores[j] = scale · q·x_j / |x_j|; inverse[j] = 1/|x_j|. q in the order of chunks. The
  // caller masks the scores of padding.
  template <typename Id>
  void scores(const T* q, const Id* ids, int64_t n, T scale, const In** x, T* scores, T* inverse) const {
    for (int64_t j = 0; j < n; ++j) x[j] = row(ids[j]);
    if (normalized && !known_inverse_norms) {
      scores_of<true>(q, ids, x, n, scale, scores, inverse);
    } else {
      scores_of<false>(q, ids, x, n, scale, scores, inverse);
    }
  }

  // to += Σ_j coefficients[j]·inverse[j]·x_j, in the order of chunks. A masked item may hold anything, so zeros are read
  // instead of items without weight.
  void add(const In* const* x, int64_t n, const T* coefficients, const T* inverse, T* to) const {
    constexpr int kRows = 2 * kGroup;
    for (int64_t j = 0; j < n; j += kRows) {
      const In* now[kRows];
      T factor[kRows];
      for (int r = 0; r < kRows; ++r) {
        const bool counts = j + r < n && coefficients[j + r] != T(0);
        now[r] = counts ? x[j + r] : table.zeros;
        factor[r] = counts ? coefficients[j + r] * inverse[j + r] : T(0);
      }
      each_chunk([&](int64_t c, auto raw) CW_INLINE_LAMBDA {
        constexpr int V = Chunk<In>::kVectors;
        Lanes<T> wide[V], even[V] = {}, odd[V] = {};  // two sums, so that additions overlap
        for (int r = 0; r < kRows; r += 2) {
          Chunk<In>::widen(raw(now[r]), wide);
          for (int v = 0; v < V; ++v) even[v] += wide[v] * factor[r];
          Chunk<In>::widen(raw(now[r + 1]), wide);
          for (int v = 0; v < V; ++v) odd[v] += wide[v] * factor[r + 1];
        }
        for (int v = 0; v < V; ++v) {
          T* const place = to + (c * V + v) * kLanes<T>;
          store_vector(place, load_vector<Lanes<T>>(place) + (even[v] + odd[v]));
        }
      });
    }
  }
};

// The gradient of x from that of x̂ = x/|x|: g without its component along x̂, divided by |x|. `unit` is x̂.
template <typename T>
CW_INLINE void through_normalization(T* g, const T* unit, T inverse, int64_t dim) {
  T along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < dim; ++i) along += g[i] * unit[i];
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) g[i] = inverse * (g[i] - along * unit[i]);
}

}  // namespace CW_ISA
}  // namespace cw_cpu
