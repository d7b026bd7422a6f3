// Rows of a table by their ids: scores against a query, and weighted sums. Included by kernels_impl.h.
#pragma once

#include <type_traits>

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

// Rows handled at a time, so that their loads overlap and a part of the query is loaded once for them.
constexpr int kGroup = 4;
// Rows added up before their sum is added to those before.
constexpr int64_t kRowsPerSum = 64;
// A table larger than that is read from L3 or memory: its rows are asked for far ahead.
constexpr int64_t kTableInL2 = int64_t(1) << 19;
constexpr int64_t kBytesAhead = int64_t(1) << 14;
constexpr int64_t kFewestRowsAhead = 32;

template <typename In, typename T>
struct Gather {
  static constexpr int kRows = kLanes<T> < kGroup ? kGroup : kLanes<T>;  // of which scores are computed at a time
  static constexpr int kBand = 4 / Chunk<In>::kVectors;                  // chunks of a row handled at a time
  static_assert(kRows <= kScoresPast);

  Table<In> table;
  const T* known_inverse_norms;  // [I] or null: computed with the scores
  bool normalized;
  Chunks<In> chunks;
  int64_t rows_ahead;  // 0: the table is in L2

  Gather(const Table<In>& t, const T* norms, bool unit)
      : table(t), known_inverse_norms(norms), normalized(unit), chunks(t.dim) {
    const int64_t bytes = t.dim * int64_t(sizeof(In)), ahead = kBytesAhead / bytes;
    rows_ahead = ahead < kFewestRowsAhead ? kFewestRowsAhead : (ahead < kMostRowsAhead ? ahead : kMostRowsAhead);
    if (t.readable * bytes <= kTableInL2) rows_ahead = 0;
  }

  // Padding reads item 0.
  CW_INLINE const In* row(int64_t id) const {
    const int64_t i = id < 0 ? 0 : id;
    return i < table.readable ? table.rows + i * table.dim : table.last_rows + (i - table.readable) * table.dim;
  }

  // Those that go through a row are functions of their own, so that each loop has the registers for itself.

  // x[j] = row(ids[j]), by selects and not by branches.
  template <typename Id>
  CW_NOINLINE void find_rows(const Id* ids, int64_t n, const In** x) const {
    const uint64_t bytes = uint64_t(table.dim) * sizeof(In), readable = uint64_t(table.readable);
    const uint64_t first = reinterpret_cast<uintptr_t>(table.rows);
    const uint64_t last = reinterpret_cast<uintptr_t>(table.last_rows) - readable * bytes;
    for (int64_t j = 0; j < n; ++j) {
      const uint64_t i = ids[j] < 0 ? 0 : uint64_t(ids[j]);
      x[j] = reinterpret_cast<const In*>(uintptr_t((i < readable ? first : last) + i * bytes));
    }
  }

  // inverse[j] = 1/|x_j|, where that is known.
  template <typename Id>
  CW_NOINLINE void find_inverse_norms(const Id* ids, int64_t n, T* inverse) const {
    const T* const known = known_inverse_norms;
    if (!normalized) {
      fill(inverse, n, T(1));
    } else if (known) {
      for (int64_t j = 0; j < n; ++j) inverse[j] = known[ids[j] < 0 ? 0 : ids[j]];
    }
  }

  // Locality: 3 for L1, 2 for L2.
  template <int Locality, int Bytes>
  static CW_INLINE void prefetch(const In* x) {
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(x) + i, 0, Locality);
  }

  // dots[r] and, with Norms, squares[r]: vectors whose lanes add up to q·x_r and |x_r|², r < kGroup. Asks for the rows that
  // come next: into L1 kRows ahead, and with Far into L2 far ahead. L1 has too few buffers for many lines on their way from
  // L3 or memory.
  template <bool Norms, bool Far>
  CW_INLINE void dots(const T* q, const In* const* x, Lanes<T>* dots, Lanes<T>* squares) const {
    constexpr int E = Chunk<In>::kElements, V = Chunk<In>::kVectors;
    using Raw = typename Chunk<In>::Raw;
    Lanes<T> dot[kGroup] = {}, square[kGroup] = {};
    const auto visit = [&](int64_t c, int r, Raw raw) CW_INLINE_LAMBDA {
      Lanes<T> wide[V];
      Chunk<In>::widen(raw, wide);
      for (int v = 0; v < V; ++v) {
        dot[r] += wide[v] * load_vector<Lanes<T>>(q + (c * V + v) * kLanes<T>);
        if (Norms) square[r] += wide[v] * wide[v];
      }
    };
    int64_t c = 0;
    for (; c + kBand <= chunks.whole; c += kBand) {
      for (int r = 0; r < kGroup; ++r) {
        for (int k = 0; k < kBand; ++k) visit(c + k, r, load_vector<Raw>(x[r] + (c + k) * E));
        prefetch<3, kBand * int(sizeof(Raw))>(x[kRows + r] + c * E);
        if (Far) prefetch<2, kBand * int(sizeof(Raw))>(x[rows_ahead + r] + c * E);
      }
    }
    for (; c < chunks.whole + chunks.has_part; ++c) {
      for (int r = 0; r < kGroup; ++r) {
        const Raw raw = load_vector<Raw>(x[r] + c * E);
        visit(c, r, c < chunks.whole ? raw : raw & chunks.mask);
        prefetch<3, int(sizeof(Raw))>(x[kRows + r] + c * E);
        if (Far) prefetch<2, int(sizeof(Raw))>(x[rows_ahead + r] + c * E);
      }
    }
    for (int r = 0; r < kGroup; ++r) {
      dots[r] = dot[r];
      if (Norms) squares[r] = square[r];
    }
  }

  template <bool Norms, bool Far>
  CW_NOINLINE void scores_of(const T* q, const In* const* x, int64_t n, T* scores, T* inverse) const {
    constexpr int W = kLanes<T>;
    for (int64_t j = 0; j < n; j += kRows) {
      Lanes<T> dot[kRows], square[kRows];
      for (int g = 0; g < kRows; g += kGroup) dots<Norms, Far>(q, x + j + g, dot + g, square + g);
      for (int g = 0; g < kRows; g += W) {
        store_vector(scores + j + g, sums_of<T>(dot + g));
        if (Norms) store_vector(inverse + j + g, sums_of<T>(square + g));
      }
    }
  }

  // scores[j] = scale · q·x_j / |x_j|, and inverse[j] = 1/|x_j| unless it is known and given; both have room for up to kRows − 1
  // more. q in the order of chunks. Behind x [n] follow rows to ask for, kMostRowsAhead + kRows of them. The caller masks
  // the scores of padding.
  void scores(const T* q, const In* const* x, int64_t n, T scale, T* scores, T* inverse) const {
    const bool norms = normalized && !known_inverse_norms;
    if (rows_ahead > 0) {
      norms ? scores_of<true, true>(q, x, n, scores, inverse) : scores_of<false, true>(q, x, n, scores, inverse);
    } else {
      norms ? scores_of<true, false>(q, x, n, scores, inverse) : scores_of<false, false>(q, x, n, scores, inverse);
    }
    if (norms) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) inverse[j] = inverse_norm(inverse[j]);
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) scores[j] *= scale * inverse[j];
  }

  // The score of one item, likewise.
  template <typename Id>
  void score(const T* q, Id id, T scale, T* score, T* inverse) const {
    const In* x[kRows + kGroup];
    for (const In*& one : x) one = table.zeros;
    x[0] = row(id);
    Lanes<T> dot[kRows] = {}, square[kRows] = {};
    const bool norms = normalized && !known_inverse_norms;
    norms ? dots<true, false>(q, x, dot, square) : dots<false, false>(q, x, dot, square);
    find_inverse_norms(&id, 1, inverse);
    if (norms) *inverse = inverse_norm(sums_of<T>(square)[0]);
    *score = sums_of<T>(dot)[0] * (scale * *inverse);
  }

  // inverse[j] becomes coefficients[j]·inverse[j], the factor of x_j in a weighted sum. A masked item may hold anything, so
  // that items without weight are exchanged for a row of zeros.
  CW_NOINLINE void weigh(const T* coefficients, int64_t n, T* inverse, const In** x) const {
    int64_t absent = 0;
#pragma omp simd reduction(+ : absent)
    for (int64_t j = 0; j < n; ++j) absent += coefficients[j] == T(0);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T factor = coefficients[j] * inverse[j];
      inverse[j] = coefficients[j] == T(0) ? T(0) : factor;
    }
    for (int64_t j = 0; absent > 0 && j < n; ++j) x[j] = coefficients[j] == T(0) ? table.zeros : x[j];
  }

  // to += Σ_j factors[j]·x_j, in the order of chunks.
  CW_NOINLINE void add(const In* const* x, int64_t n, const T* factors, T* to) const {
    constexpr int E = Chunk<In>::kElements, V = Chunk<In>::kVectors;
    using Raw = typename Chunk<In>::Raw;
    // Two sums, so that additions overlap.
    const auto add_rows = [&](auto band, int64_t c, int64_t begin, int64_t end, Raw mask) CW_INLINE_LAMBDA {
      constexpr int C = decltype(band)::value;
      Lanes<T> even[C * V] = {}, odd[C * V] = {};
      const auto add_row = [&](int64_t j, Lanes<T>* sum) CW_INLINE_LAMBDA {
        const In* const from = x[j] + c * E;
        const T factor = factors[j];
        for (int k = 0; k < C; ++k) {
          Lanes<T> wide[V];
          Chunk<In>::widen(load_vector<Raw>(from + k * E) & mask, wide);
          for (int v = 0; v < V; ++v) sum[k * V + v] += wide[v] * factor;
        }
      };
      int64_t j = begin;
      for (; j + 2 <= end; j += 2) {
        add_row(j, even);
        add_row(j + 1, odd);
      }
      if (j < end) add_row(j, even);
      for (int v = 0; v < C * V; ++v) {
        T* const place = to + (c * V + v) * kLanes<T>;
        store_vector(place, load_vector<Lanes<T>>(place) + (even[v] + odd[v]));
      }
    };
    const Raw all = ~Raw{};
    for (int64_t j = 0; j < n; j += kRowsPerSum) {
      const int64_t end = n - j < kRowsPerSum ? n : j + kRowsPerSum;
      int64_t c = 0;
      for (; c + kBand <= chunks.whole; c += kBand) add_rows(std::integral_constant<int, kBand>(), c, j, end, all);
      for (; c < chunks.whole + chunks.has_part; ++c) {
        add_rows(std::integral_constant<int, 1>(), c, j, end, c < chunks.whole ? all : chunks.mask);
      }
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
