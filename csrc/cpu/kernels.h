// The CPU kernels' interface: plain pointers and sizes, no torch. Its functions are static, so that the linker does not hand
// one instruction set's copy to another. Each instruction set has its own copy of the kernels
// (kernels_default.cpp, kernels_avx2.cpp, kernels_avx512.cpp), in a namespace of its own.
#pragma once

#include <cstdint>

#include "../negative_sampling.h"
#include "../kernel_types.h"
#include "bucketed_pairs.h"
#include "columns_by_item.h"

namespace cw_cpu {

using cw_ext::Compute;
using cw_ext::Curve;
using cw_ext::RowInputs;
using cw_ext::RowResults;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename In>
struct ScoresTask {
  using T = typename Compute<In>::type;
  cw_ext::LossArguments arguments;
  const In* pos;  // [B]
  int64_t pos_stride;
  const In* neg;  // [B, N]
  int64_t neg_stride;
  int64_t n;
  const In* extra;  // [B, M]
  int64_t extra_stride;
  int64_t m;
  const T* log_q;  // [B, N] or null
  int64_t log_q_stride;
  RowInputs<T> values;
  Curve<T> curve;
  RowResults<T> out;
  T* d_pos;    // [B]; null: no gradients wanted
  T* d_neg;    // [B, N]
  T* d_extra;  // [B, M]
};

// A table [I, D] whose rows are read a register at a time, past their end. The last rows, where that would read beyond the
// table, are in a copy with room behind it.
template <typename In>
struct Table {
  const In* rows;
  int64_t dim;
  int64_t readable;     // rows that can be read where they are
  const In* last_rows;  // the others
  const In* zeros;      // a row of zeros
};

// What rows of embeddings need, whether each has negatives of its own or all share them.
template <typename In>
struct QueryTask {
  using T = typename Compute<In>::type;
  cw_ext::LossArguments arguments;
  const In* queries;  // [B, D]
  Table<In> items;
  int64_t n;
  int64_t m;
  const T* log_q;  // [B, N] or null
  int64_t log_q_stride;
  RowInputs<T> values;
  Curve<T> curve;
  T scale;          // of the similarity
  bool normalized;  // cosine
  bool with_gradients;
  RowResults<T> out;
  T* unit_queries;  // [B, D], these two with gradients, and null where only the scores' are wanted
  T* d_queries;     // [B, D]
};

template <typename In, typename Id>
struct EmbeddingsTask : QueryTask<In> {
  using T = typename Compute<In>::type;
  PairIds<Id> ids;
  const T* inverse_norms;  // [I], or null: computed with the scores
};

// Where distinct ids stand among themselves, in increasing order: see distinct_ids.h. A word has a bit per id.
constexpr int64_t kIdsPerWord = 64;
struct IdWord {
  uint64_t bits;
  int64_t before;  // how many ids come before the word's
};
struct IdPlaces {
  const IdWord* words;    // or null, and then the ids themselves:
  const int64_t* sorted;
  const int64_t* bins;    // those of id >> shift = bin begin at sorted[bins[bin]], and end at sorted[bins[bin + 1]]
  int shift;
};

// Known positives, as calls.h's History has them; query_ids may be null.
struct HistoryPointers {
  const int64_t* query_ids;
  const int64_t* starts;
  const int32_t* known;
};

// Negatives that all rows share: the scores and the queries' gradients are matrix products.
template <typename In>
struct SharedTask : QueryTask<In> {
  using T = typename Compute<In>::type;
  const int64_t* pos_ids;    // [B]
  const int64_t* extra_ids;  // [B, M]
  const int64_t* neg_ids;    // [N]
  int64_t num_items;
  bool any_padding;          // among them
  bool excludes;             // rows leave out their positive and known positives
  ColumnsByItem by_item;     // where they do; no slots where each column's item is the column itself
  HistoryPointers histories;
  T* columns;                // x̂ᵀ·scale, packed: [panels of N, D, kPanel]      filled by pack_shared()
  T* rows;                   // x̂, packed: [panels of D, N, kPanel]; 0 instead of values that are not finite
  T* coefficients;           // [B, 1 + M]: dloss/dscore · scale
  T* shared_coefficients;    // [B, N]: dloss/dscore; or only some rows, from first_row on
  int64_t first_row;
};

// Two numbers in bf16, of which products are summed in fp32: of one row or column, at the even and the next odd place of what
// the product sums over.
struct Pair {
  uint32_t bits;  // the first in the low half
};

// How many numbers an operand of a product stands for.
template <typename Operand>
constexpr int64_t kPerOperand = 1;
template <>
constexpr int64_t kPerOperand<Pair> = 2;

// The same, where the negatives are so many that a row's scores do not stay in the cache: a chunk of them at a time
// (shared_chunks_kernel.h). Matrix products are of `Operand`, T or Pair.
constexpr int64_t kChunk = 256;

template <typename In, typename Operand>
struct ChunkTask : SharedTask<In> {
  using T = typename Compute<In>::type;
  static constexpr int64_t kDepth = kChunk / kPerOperand<Operand>;  // of a product over a chunk's negatives
  // Packed as ProductTask's b, with 0 behind the last negative. Those of all chunks by pack_chunks().
  Operand* packed_columns;  // x̂ᵀ·scale, or of pairs xᵀ: [panels of N, D, kPanel]
  Operand* packed_rows;     // x̂: [chunks, panels of D, kDepth, kPanel]; 0 instead of values that are not finite
  T* column_scale;          // [N] of pairs, scale/|x|, or null: 1
  const int64_t* left_out_starts;   // [rows + 1] from first_row on, or null: where a row's begin among the next
  const int32_t* left_out_columns;  // rising: see Exclusion
  // The terms of the sums, in place of shared_coefficients, for rows from first_row on; and their factors.
  Operand* terms;           // [chunks, rows_at_once, kChunkStride], or of pairs [chunks, rows_at_once / 2, kChunkStride]
  T* factors;               // [chunks, rows_at_once]: dloss/dscore = factor · term
  int64_t rows_at_once;     // even
};

// Not a power of two, so that the rows of a chunk are not in the same few places of a cache.
constexpr int64_t kChunkStride = kChunk + 16;

// To sums [N, ≥ D] of `stride` is added, over `rows` rows from first_row on, scale · dloss/dscore · row_factor · unit_queries.
template <typename T>
struct ChunkSums {
  T* sums;
  int64_t stride;
  const T* row_factor;  // from first_row on, or null: 1
  int64_t rows;
};

// Negatives of each row's own, out of few items: the scores of all items, and how often each is a negative. n is the number
// of items, as those are a row's elements; log_q is of the draws, [B, draws].
template <typename In, typename Id>
struct DenseTask : QueryTask<In> {
  using T = typename Compute<In>::type;
  PairIds<Id> ids;  // their n is the draws of a row; neg is null where the rows draw for themselves:
  cw_ext::NegativeSource source;
  const T* item_log_q;  // [I], or null: log q of each item when it is drawn
  // The table as SharedTask has it, without a selection.
  const T* columns;  // filled by pack_items()
  const T* rows;
  T* coefficients;  // [rows, I]: dloss/dscore · scale, of all that a row takes the item for; or null: not kept
  int64_t first_row;  // of the coefficients
};

// Scores of given items, without a loss. −∞ for an id of −1.
template <typename In, typename Id>
struct CandidateScoresTask {
  using T = typename Compute<In>::type;
  const In* queries;  // [B, D]
  Table<In> items;
  int64_t num_items;
  const Id* ids;   // [B, K]
  int64_t count;   // B·K
  int64_t k;
  T scale;          // of the similarity
  bool normalized;  // cosine
  const T* inverse_norms;  // [I], or null: computed with the scores
  const T* columns;        // the table as SharedTask has it, filled by pack_items(): dense_candidate_scores() only
  T* out;  // [B, K]
};

// Rows and columns of the ids, handled at a time: one row or part of it, or several whole rows.
struct CandidateBlock {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t columns;
  __attribute__((always_inline)) int64_t count() const { return rows * columns; }
};

// The gradient of the item table from its sums.
template <typename In>
struct FinishItemsTask {
  using T = typename Compute<In>::type;
  const In* items;  // [I, D]
  int64_t dim;
  bool normalized;
  T* sums;  // [I, stride]; overwritten
  int64_t stride;
  In* gradient;  // [I, D]
};

// The gradient of the item table from sorted pairs (bucketed_pairs.h): coefficient times source row, for each pair of an item.
template <typename In>
struct ItemGradientTask {
  using T = typename Compute<In>::type;
  const In* items;          // [table's rows, D]
  const int64_t* item_ids;  // [I] rows of the table, or null: 0, 1, …
  int64_t num_items;        // I
  int64_t dim;
  int64_t padded_dim;  // round_up_dim(dim)
  bool normalized;
  const T* before_high;  // [I, D] sums to add to, or null
  const T* before_low;   // [I, D] what was rounded away in them, or null
  T* after_high;         // [I, D] where the sums go; null for the last part, which writes the gradient instead
  T* after_low;          // [I, D]
  const T* sources;  // [rows, padded_dim]
  PairGrid grid;
  const PairKey* keys;
  const T* coefficients;
  const int32_t* ends;
  In* gradient;  // [I, D]
};

// x [rows, width] times factor [rows], into the dtype of a gradient.
template <typename In>
struct ScaleRowsTask {
  using T = typename Compute<In>::type;
  const T* x;
  const T* factor;
  int64_t width;
  In* out;
};

// Rows of a matrix product handled at a time: a multiple of the rows of a register tile in any instruction set.
constexpr int64_t kRowStep = 12;
// Terms of a product's sums added up at a time, so that what each panel reads again of the first factor stays in the cache.
constexpr int64_t kDepth = 128;

// c [rows, panels·kPanel] = a [rows, depth] · b, with b packed as [panels, depth, kPanel]. Of pairs, the depth is half of
// what is summed over.
template <typename T, typename Operand = T>
struct ProductTask {
  static constexpr int64_t kPanel = 128 / int64_t(sizeof(T));
  const Operand* a;
  int64_t a_row_stride;  // this or the next is 1
  int64_t a_stride;
  int64_t depth;
  const Operand* b;
  int64_t panels;
  T* c;
  int64_t c_stride;
  bool accumulate;  // add to c
};

// The length of a row with room for whole registers of any instruction set and element type.
static inline int64_t round_up_dim(int64_t dim) { return (dim + 31) / 32 * 32; }

// Scores are computed a register at a time, past the end of a row of them.
constexpr int64_t kScoresPast = 16;
static inline int64_t round_up_width(int64_t width) { return (width + kScoresPast - 1) / kScoresPast * kScoresPast; }

// How far ahead of their use rows are asked for, at most.
constexpr int64_t kMostRowsAhead = 128;

// Where embeddings() works.
template <typename In>
struct EmbeddingsScratch {
  const In** item_rows;                // embeddings_rows(n, m)
  typename Compute<In>::type* numbers;  // embeddings_scratch(n, m, dim)
};
static inline int64_t embeddings_rows(int64_t n, int64_t m) {
  return round_up_width(1 + m + n) + kMostRowsAhead + kScoresPast;
}

// A row's filter of known positives has at most this many words, which fit into L1.
constexpr int64_t kFilterWords = 4096;

// How many values of the compute type a thread needs as scratch.
static inline int64_t scores_scratch(int64_t n, int64_t m) { return 5 * (n + m); }
static inline int64_t embeddings_scratch(int64_t n, int64_t m, int64_t dim) {
  return 7 * round_up_width(1 + m + n) + 5 * round_up_dim(dim);
}
// Rows of the shared negatives' scores handled at a time: they stay in L2.
static inline int64_t shared_step(int64_t n) { return kRowStep * std::max<int64_t>(1, std::min<int64_t>(4, 5000 / n)); }
static inline int64_t shared_scratch(int64_t n, int64_t m, int64_t dim) {
  return shared_step(n) * (n + 64 + 2 * (1 + m) + 1 + 2 * round_up_dim(dim)) + 5 * n + (1 + m) + 2 * round_up_dim(dim);
}
// Rows that go through the chunks together, and rows of a block of scores, which stays in L1 or L2.
constexpr int64_t kRowsOfChunks = 192;
constexpr int64_t kBlockRows = 48;
static inline int64_t shared_chunks_scratch(int64_t m, int64_t dim) {
  return kRowsOfChunks * (3 * round_up_dim(dim) + 2 * (1 + m) + 1) + 2 * kBlockRows * kChunkStride + 2 * kChunk + (1 + m) +
         2 * round_up_dim(dim);
}
static inline int64_t pack_chunks_scratch(int64_t dim) { return kChunk * (dim + 1); }
// Rows of dense scores handled at a time, with their coefficients.
static inline int64_t dense_step(int64_t items) { return kRowStep * (items < 2500 ? 2 : 1); }
static inline int64_t dense_scratch(int64_t items, int64_t m, int64_t dim) {
  return dense_step(items) * (items + 64 + items + 2 * round_up_dim(dim) + 1) + 8 * items + 2 * (1 + m) + 8;
}
// Where candidate_scores() works, on a block of at most kCandidates.
template <typename In>
struct CandidatesScratch {
  const In** item_rows;                 // kCandidateRows
  typename Compute<In>::type* numbers;  // candidates_scratch(dim)
};
constexpr int64_t kCandidates = 2048;
constexpr int64_t kCandidateRows = kCandidates + kMostRowsAhead + kScoresPast;
static inline int64_t candidates_scratch(int64_t dim) {
  return 2 * (kCandidates + kScoresPast) + 2 * round_up_dim(dim);
}
// Rows of dense candidates' scores handled at a time, with the place of an id of −1 before each.
constexpr int64_t kBeforeScores = 16;
static inline int64_t dense_candidates_step(int64_t items) { return kRowStep * (items < 2500 ? 4 : 1); }
static inline int64_t dense_candidates_scratch(int64_t items, int64_t dim) {
  return dense_candidates_step(items) * (kBeforeScores + items + 64 + round_up_dim(dim));
}
// Integers that a thread needs as scratch.
static inline int64_t dense_integers(int64_t items, int64_t draws) { return items + 2 + draws + kFilterWords; }
static inline int64_t item_gradient_scratch(int64_t dim) { return 3 * kItemsPerBucket * round_up_dim(dim); }

#define CW_DECLARE_KERNELS(NAMESPACE)                                                                                \
  namespace NAMESPACE {                                                                                              \
  template <typename In>                                                                                             \
  void scores(const ScoresTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch);          \
  template <typename In>                                                                                             \
  void scale_rows(const ScaleRowsTask<In>& task, int64_t begin, int64_t end);                                        \
  template <typename In, typename Id>                                                                                \
  void embeddings(const EmbeddingsTask<In, Id>& task, int64_t begin, int64_t end,                                    \
                  typename Compute<In>::type* coefficients, const EmbeddingsScratch<In>& scratch);                   \
  void draw_rows(const cw_ext::NegativeSource& source, int64_t n, int64_t begin, int64_t end, int32_t* ids,          \
                 uint32_t* room);                                                                                    \
  template <typename T>                                                                                              \
  void look_up(const T* table, const int32_t* ids, int64_t n, T* out);                                               \
  template <typename In>                                                                                             \
  void inverse_norms(const In* x, int64_t dim, typename Compute<In>::type* out, int64_t begin, int64_t end);         \
  template <typename In>                                                                                             \
  void item_gradient(const ItemGradientTask<In>& task, int64_t begin, int64_t end,                                   \
                     typename Compute<In>::type* scratch);                                                           \
  template <typename In>                                                                                             \
  void pack_shared(const SharedTask<In>& task, int64_t begin, int64_t end);                                          \
  template <typename In>                                                                                             \
  void shared_negatives(const SharedTask<In>& task, int64_t begin, int64_t end,                                      \
                        typename Compute<In>::type* scratch);                                                        \
  template <typename In, typename Operand>                                                                           \
  void pack_chunks(const ChunkTask<In, Operand>& task, int64_t begin, int64_t end,                                   \
                   typename Compute<In>::type* scratch);                                                             \
  template <typename In, typename Operand>                                                                           \
  void shared_chunks(const ChunkTask<In, Operand>& task, int64_t begin, int64_t end,                                 \
                     typename Compute<In>::type* scratch);                                                           \
  template <typename In, typename Operand>                                                                           \
  void add_chunk_sums(const ChunkTask<In, Operand>& task, const ChunkSums<typename Compute<In>::type>& sums,         \
                      int64_t begin, int64_t end, Operand* packed_queries);                                          \
  template <typename In>                                                                                             \
  void pack_items(const Table<In>& items, int64_t count, bool normalized, typename Compute<In>::type scale,          \
                  int64_t begin, int64_t end, typename Compute<In>::type* columns, typename Compute<In>::type* rows); \
  template <typename In, typename Id>                                                                                \
  bool dense(const DenseTask<In, Id>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch,         \
             int32_t* integers);                                                                                     \
  template <typename In, typename Id>                                                                                \
  int64_t candidate_scores(const CandidateScoresTask<In, Id>& task, const CandidateBlock& block,                     \
                           const CandidatesScratch<In>& scratch);                                                    \
  template <typename In, typename Id>                                                                                \
  int64_t dense_candidate_scores(const CandidateScoresTask<In, Id>& task, int64_t begin, int64_t end,                \
                                 typename Compute<In>::type* scratch);                                               \
  template <typename In>                                                                                             \
  void finish_items(const FinishItemsTask<In>& task, int64_t begin, int64_t end,                                     \
                    typename Compute<In>::type* unit);                                                               \
  template <typename Id>                                                                                             \
  void find_places(const IdPlaces& places, const Id* ids, int64_t n, int64_t* out);                                  \
  template <typename T>                                                                                              \
  void product(const ProductTask<T>& task, int64_t begin, int64_t end);                                              \
  }

CW_DECLARE_KERNELS(isa_default)
#if defined(__x86_64__)
CW_DECLARE_KERNELS(isa_avx2)
CW_DECLARE_KERNELS(isa_avx512)
#endif

}  // namespace cw_cpu
