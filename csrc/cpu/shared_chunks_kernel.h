// From embeddings, where all rows share so many negatives that a row's scores do not stay in the cache: a block of rows and a
// chunk of negatives at a time, with a running maximum. Included by kernels_impl.h.
#pragma once

#include "product_kernel.h"
#include "row_chunks.h"
#include "shared_negatives_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

// Writes a number at place k of what a product sums over, in column i of a panel.
template <typename T>
CW_INLINE void put(T* panel, int64_t k, int64_t i, T value) {
  panel[k * ProductTask<T>::kPanel + i] = value;
}
CW_INLINE void put(Pair* panel, int64_t k, int64_t i, float value) {
  BFloat16 rounded;
  store(value, rounded);
  uint32_t& bits = panel[k / 2 * ProductTask<float>::kPanel + i].bits;
  bits = k % 2 == 0 ? rounded.bits : bits | uint32_t(rounded.bits) << 16;
}

// The number that put() writes into a pair; one near the largest becomes infinite.
template <typename T>
CW_INLINE T rounded(T value) {
  BFloat16 narrow;
  store(float(value), narrow);
  return T(load(narrow));
}

// Chunks [begin, end) of the negatives. scratch: pack_chunks_scratch(dim).
template <typename In, typename Operand>
void pack_chunks(const ChunkTask<In, Operand>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel, kEach = kPerOperand<Operand>;
  constexpr bool kPairs = kEach == 2;
  const Gather<In, T> items(task.items, nullptr, task.normalized);
  const int64_t n = task.n, dim = task.items.dim, depth = (dim + kEach - 1) / kEach;
  const int64_t dim_panels = (dim + kPanel - 1) / kPanel;
  T* const values = scratch;                  // [kChunk, dim]
  T* const inverse = values + kChunk * dim;   // [kChunk]
  for (int64_t c = begin; c < end; ++c) {
    const int64_t first = c * kChunk, count = n - first < kChunk ? n - first : kChunk;
    for (int64_t j = 0; j < count; ++j) {
      const In* const x = items.row(task.neg_ids[first + j]);
      inverse[j] = task.normalized ? inverse_norm(squared_norm<In, T>(x, dim)) : T(1);
      if (task.column_scale) task.column_scale[first + j] = inverse[j] * task.scale;
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) values[j * dim + i] = load(x[i]);
    }
    const int64_t panels = (count + kPanel - 1) / kPanel;
    for (int64_t q = 0; q < panels; ++q) {
      Operand* const panel = task.packed_columns + (first / kPanel + q) * depth * kPanel;
      for (int64_t i = 0; i < depth * kEach; ++i) {
        for (int64_t l = 0; l < kPanel; ++l) {
          const int64_t j = q * kPanel + l;
          const bool there = i < dim && j < count;
          put(panel, i, l, there ? values[j * dim + i] * (kPairs ? T(1) : inverse[j] * task.scale) : T(0));
        }
      }
    }
    const int64_t room = (count + kEach - 1) / kEach * kEach;
    for (int64_t q = 0; q < dim_panels; ++q) {
      Operand* const panel = task.packed_rows + (c * dim_panels * task.kDepth + q * (room / kEach)) * kPanel;
      for (int64_t j = 0; j < room; ++j) {
        for (int64_t l = 0; l < kPanel; ++l) {
          const int64_t i = q * kPanel + l;
          const T value = i < dim && j < count ? values[j * dim + i] * inverse[j] : T(0);
          put(panel, j, l, is_finite(kPairs ? rounded(value) : value) ? value : T(0));
        }
      }
    }
  }
}

// `count` terms in each row of a block as a product's operand, in `room` if it is not what they are.
template <typename T>
CW_INLINE const T* as_operand(T* terms, int64_t, int64_t, T*) {
  return terms;
}
#if CW_VECTOR_BYTES == 64
CW_INLINE const Pair* as_operand(float* terms, int64_t rows, int64_t count, Pair* room) {
  constexpr int64_t kEach = 2 * kLanes<float>;
  for (int64_t r = 0; r < rows; ++r) {
    float* const row = terms + r * kChunkStride;
    fill(row + count, (count + kEach - 1) / kEach * kEach - count, 0.0f);
    for (int64_t j = 0; j < count; j += kEach) to_pairs(row + j, room + r * kChunkStride + j / 2);
  }
  return room;
}
#endif

// A query as a product's operand.
template <typename In, typename T>
CW_INLINE void query_operand(const In*, const T* unit, int64_t dim, T* to) {
  for (int64_t i = 0; i < dim; ++i) to[i] = unit[i];
}
template <typename In>
CW_INLINE void query_operand(const In* query, const float*, int64_t dim, Pair* to) {
  for (int64_t i = 0; i < dim; i += 2) {
    BFloat16 low{}, high{};
    store(load(query[i]), low);
    if (i + 1 < dim) store(load(query[i + 1]), high);
    to[i / 2].bits = low.bits | uint32_t(high.bits) << 16;
  }
}

// Keeps the terms of two rows of a chunk, of which the second may be missing, as pairs.
CW_INLINE void keep_terms(const Pair* terms, int64_t rows, int64_t n, Pair* to) {
  uint16_t numbers[2][kChunk] = {};
  for (int64_t r = 0; r < rows; ++r) std::memcpy(numbers[r], terms + r * kChunkStride, size_t(n) * sizeof(uint16_t));
  for (int64_t j = 0; j < n; ++j) to[j].bits = numbers[0][j] | uint32_t(numbers[1][j]) << 16;
}

// At most kRowsOfChunks rows [begin, end), each through all chunks. scratch: shared_chunks_scratch(m, dim).
template <typename In, typename Operand, typename T = typename Compute<In>::type>
void rows_through_chunks(const ChunkTask<In, Operand>& task, const Parameters<T>& p, int64_t begin, int64_t end, T* scratch) {
  constexpr int64_t kPanel = ProductTask<T>::kPanel, kEach = kPerOperand<Operand>;
  const ChunkedRow<T> row = choose_chunked_row<T>(p.weighting);
  const Gather<In, T> items(task.items, nullptr, task.normalized);
  const int64_t n = task.n, m = task.m, dim = task.items.dim, own = 1 + m, rows = end - begin;
  const int64_t room = round_up_dim(dim), depth = (dim + kEach - 1) / kEach, dim_panels = (dim + kPanel - 1) / kPanel;
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const bool wanted = task.with_gradients, through_log_q = task.log_q || p.normalize_weights;

  // Of all rows:
  T* const units = scratch;                                                      // [room]
  Operand* const queries = reinterpret_cast<Operand*>(units + rows * room);      // [room]
  T* const sums = units + 2 * rows * room;                                       // [room]
  T* const own_scores = sums + rows * room;                                      // [1 + m], positive and extra positives
  T* const inverse = own_scores + rows * own;                                    // [1 + m]
  T* const query_inverse = inverse + rows * own;                                 // one number
  // Of a block:
  T* const score_room = query_inverse + rows;                                    // [kChunkStride]
  Operand* const rounded = reinterpret_cast<Operand*>(score_room + kBlockRows * kChunkStride);  // [kChunkStride]
  // Of one row:
  T* const log_q = score_room + 2 * kBlockRows * kChunkStride;                       // [kChunk]
  T* const chunk_room = log_q + kChunk;                                          // [kChunk]
  T* const own_terms = chunk_room + kChunk;                                      // [1 + m]
  T* const query = own_terms + own;                                              // [room], in the order of chunks
  T* const d_query = query + room;                                               // [room], likewise
  RunningRow<T> running[kRowsOfChunks];
  int64_t next_left_out[kRowsOfChunks];

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = begin + r;
    query_inverse[r] = positive_scores(task, items, b, units + r * room, query, own_scores + r * own, inverse + r * own);
    query_operand(task.queries + b * dim, units + r * room, dim, queries + r * room);
    running[r] = without_chunks<T>();
    next_left_out[r] = task.left_out_starts ? task.left_out_starts[b - task.first_row] : 0;
  }
  fill(sums, rows * room, T(0));

  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = c * kChunk, count = n - first < kChunk ? n - first : kChunk;
    const int64_t panels = (count + kPanel - 1) / kPanel;
    const Operand* const columns = task.packed_columns + first * depth;
    const Operand* const item_rows = task.packed_rows + c * dim_panels * task.kDepth * kPanel;
    LogSum<T> denominator_of_all;
    bool denominator_known = false;
    for (int64_t block = 0; block < rows; block += kBlockRows) {
      const int64_t block_rows = rows - block < kBlockRows ? rows - block : kBlockRows;
      const int64_t first_place = c * task.rows_at_once + begin - task.first_row + block;
      T* scores = score_room;  // where the terms take their place
      if constexpr (kEach == 1) {
        if (task.terms) scores = task.terms + first_place * kChunkStride;
      }
      product_of(ProductTask<T, Operand>{queries + block * room, room, 1, depth, columns, panels, scores, kChunkStride,
                                         false},
                 0, block_rows);
      for (int64_t i = 0; i < block_rows; ++i) {
        const int64_t r = block + i, b = begin + r;
        T* const terms = scores + i * kChunkStride;
        if (task.column_scale) {
          const T* const scale = task.column_scale + first;
          const T inverse_of_query = query_inverse[r];
#pragma omp simd
          for (int64_t j = 0; j < count; ++j) terms[j] *= scale[j] * inverse_of_query;
        }
        const bool dead = task.pos_ids[b] < 0;
        const T* const given_log_q = task.log_q ? task.log_q + b * task.log_q_stride + first : nullptr;
        int64_t& next = next_left_out[r];
        const int64_t last = task.left_out_starts ? task.left_out_starts[b - task.first_row + 1] : 0;
        const bool leaves_out = next < last && task.left_out_columns[next] < first + count;
        const T* const masked =
            masked_log_q(dead || task.any_padding || (leaves_out && through_log_q), given_log_q, count, log_q,
                         [&](int64_t j) { return dead || task.neg_ids[first + j] < 0; });
        // A score of −∞ has no mass but counts as a negative, unless its log weight is −∞ too.
        int64_t left_out = 0;
        for (; next < last && task.left_out_columns[next] < first + count; ++next) {
          const int64_t j = task.left_out_columns[next] - first;
          terms[j] = -infinity<T>();
          if (masked) {
            log_q[j] = -infinity<T>();
          } else {
            ++left_out;
          }
        }
        Row<T> chunk{};
        chunk.pos = own_scores[r * own];
        chunk.neg = terms;
        chunk.n = count;
        chunk.negatives = count - left_out;
        chunk.log_q = masked;
        chunk.values = task.values.at(b);
        chunk.above = task.out.above;
        // Where all rows have the same log weights, so they have the denominator.
        const bool of_all = given_log_q && masked == given_log_q && task.log_q_stride == 0 && !p.normalize_weights;
        if (of_all && !denominator_known) {
          denominator_of_all = row.denominator(chunk, p, chunk_room);
          denominator_known = true;
        }
        const T rescale = row.add(chunk, p, of_all ? &denominator_of_all : nullptr, running[r], terms, chunk_room);
        if (!wanted) continue;
        if (rescale != T(1)) {
          for (int64_t d = 0; d < room; ++d) sums[r * room + d] *= rescale;
        }
        if (task.shared_coefficients) {
          T* const to = task.shared_coefficients + (b - task.first_row) * n + first;
          for (int64_t j = 0; j < count; ++j) to[j] = terms[j];
        }
        task.factors[c * task.rows_at_once + b - task.first_row] = running[r].negatives.max;
      }
      if (!wanted) continue;
      const Operand* const operand = as_operand(scores, block_rows, count, rounded);
      product_of(ProductTask<T, Operand>{operand, kChunkStride, 1, (count + kEach - 1) / kEach, item_rows, dim_panels,
                                         sums + block * room, room, true},
                 0, block_rows);
      if constexpr (kEach == 2) {
        for (int64_t i = 0; task.terms && i < block_rows; i += 2) {
          keep_terms(operand + i * kChunkStride, block_rows - i < 2 ? 1 : 2, count,
                     task.terms + (first_place + i) / 2 * kChunkStride);
        }
      }
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = begin + r, place = b - task.first_row;
    T* const own_coefficients = wanted ? task.coefficients + b * own : own_terms;
    Row<T> positives{};
    positives.pos = own_scores[r * own];
    positives.extra = own_scores + r * own + 1;
    positives.m = m;
    positives.values = task.values.at(b);
    RowGradients<T> gradients{};
    gradients.wanted = wanted;
    gradients.extra = own_coefficients + 1;
    T factor = 0;
    write_row(task.out, b, row.finish(positives, p, running[r], gradients, factor));
    if (task.out.above) task.out.above[b] = running[r].above;
    if (!wanted) continue;
    own_coefficients[0] = gradients.pos;
    for (int64_t k = 0; k < own; ++k) own_coefficients[k] *= task.scale;
    query_gradient(task, items, b, inverse + r * own, sums + r * room, task.scale * factor, units + r * room,
                   query_inverse[r], d_query);
    for (int64_t c = 0; c < chunks; ++c) {
      T& of_chunk = task.factors[c * task.rows_at_once + place];
      of_chunk = factor == T(0) ? T(0) : factor * relative_to(of_chunk, running[r].negatives.max);
      if (!task.shared_coefficients) continue;
      const int64_t first = c * kChunk, count = n - first < kChunk ? n - first : kChunk;
      T* const to = task.shared_coefficients + place * n + first;
      for (int64_t j = 0; j < count; ++j) to[j] *= of_chunk;
    }
  }
}

template <typename In, typename Operand>
void shared_chunks(const ChunkTask<In, Operand>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  const auto p = make_parameters<typename Compute<In>::type>(task.arguments, task.values.temperature.all);
  for (int64_t first = begin; first < end; first += kRowsOfChunks) {
    rows_through_chunks(task, p, first, end - first < kRowsOfChunks ? end : first + kRowsOfChunks, scratch);
  }
}

// Chunks [begin, end) of the sums over rows. packed_queries: [panels of D, rows (of pairs half of them), kPanel].
template <typename In, typename Operand>
void add_chunk_sums(const ChunkTask<In, Operand>& task, const ChunkSums<typename Compute<In>::type>& sums, int64_t begin,
                    int64_t end, Operand* packed_queries) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel, kEach = kPerOperand<Operand>;
  const int64_t dim = task.items.dim, panels = (dim + kPanel - 1) / kPanel, depth = (sums.rows + kEach - 1) / kEach;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t r = 0; r < depth * kEach; ++r) {
      const int64_t b = task.first_row + r;
      const bool there = r < sums.rows;
      const T factor = there ? task.factors[c * task.rows_at_once + r] * task.scale *
                                   (sums.row_factor ? sums.row_factor[r] : T(1))
                             : T(0);
      const T* const unit = task.unit_queries + (there ? b : 0) * dim;
      for (int64_t q = 0; q < panels; ++q) {
        Operand* const panel = packed_queries + q * depth * kPanel;
        for (int64_t l = 0; l < kPanel; ++l) {
          const int64_t i = q * kPanel + l;
          // A row without a factor may hold anything.
          put(panel, r, l, factor == T(0) || i >= dim ? T(0) : unit[i] * factor);
        }
      }
    }
    const int64_t first = c * kChunk, count = task.n - first < kChunk ? task.n - first : kChunk;
    product_of(ProductTask<T, Operand>{task.terms + c * (task.rows_at_once / kEach) * kChunkStride, 1, kChunkStride, depth,
                                       packed_queries, panels, sums.sums + first * sums.stride, sums.stride, true},
               0, count);
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
