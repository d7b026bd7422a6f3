// The CUDA kernels' interface: plain pointers, sizes and a stream, no torch. All pointers are to device memory; a null
// pointer is an argument that was not given, or a result that is not wanted. Launchers never wait for the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../negative_sampling.h"
#include "../kernel_types.h"

namespace cw_cuda {

using cw_ext::Compute;
using cw_ext::Curve;
using cw_ext::NegativeSource;
using cw_ext::RowArguments;
using cw_ext::RowInputs;
using cw_ext::RowResults;

// The ids of the embeddings ops. A row's 1 + M + N pairs are, in this order, its positive, extra positives and negatives.
struct Pairs {
  const int64_t* pos_ids;    // [B]
  const int64_t* extra_ids;  // [B, M]
  const void* neg_ids;       // [B, N]
  bool wide_neg_ids;         // int64, else int32
  int64_t m;
  int64_t n;
  int64_t num_items;
};

// ---- pairs sorted by their items: sort_kernel.cu --------------------------------------------------------------------

// In an order that only the ids decide. Key I marks a pair that adds nothing.
struct SortedPairs {
  uint32_t* unsorted_keys;    // [P]
  uint32_t* unsorted_places;  // [P]
  uint32_t* keys;             // [P]
  uint32_t* places;           // [P], the place of each key before sorting
  int64_t count;              // P, below 2^31
  int64_t num_items;          // I, below 2^31
};

// The order is stable, so that it depends on the keys only. With temporary == nullptr, only sets how many bytes it
// needs there.
cudaError_t sort_pairs(void* temporary, size_t* temporary_bytes, const SortedPairs& pairs, cudaStream_t stream);

// ---- from scores: scores_kernel.cu ---------------------------------------------------------------------------------

// The type in which the scores' gradients are kept until backward. bf16 has the range of fp32; in fp16 a mean's would
// underflow.
template <typename In>
struct Kept {
  using type = typename Compute<In>::type;
};
template <>
struct Kept<__nv_bfloat16> {
  using type = __nv_bfloat16;
};

template <typename In>
struct ScoresTask {
  using T = typename Compute<In>::type;
  cw_ext::LossArguments arguments;
  int64_t rows;
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
  const T* row_scale;     // [B] or null: the negatives' scores are neg·row_scale·column_scale; a negative one of the
  const T* column_scale;  // [N]          two masks out. Both are given, or none
  const int32_t* excluded;  // [B] or null: how many scores of −∞ are not negatives. Null with a curve
  RowInputs<T> values;
  Curve<T> curve;
  bool with_gradients;
  RowResults<T> out;
  T* d_pos;                         // [B]
  typename Kept<In>::type* d_neg;   // [B, N]
  T* d_extra;                       // [B, M]
};

template <typename In>
cudaError_t launch_scores(const ScoresTask<In>& task, cudaStream_t stream);

// ---- from embeddings with shared negatives: shared_rows_kernel.cu, shared_pairs_kernel.cu ----------------------------

// Rows of a table, in order or of these ids; a row is zero for an id of −1. With `marks`, the scores kernel takes products
// of −∞ for negatives that are left out: no other product may be −∞, and no factor make one of these finite or NaN.
template <typename In>
struct SharedRowsTask {
  using T = typename Compute<In>::type;
  const In* table;     // [I, D]
  int64_t num_items;
  const int64_t* ids;  // [R]
  bool gathers;        // row r is that of ids[r], else it is the table's row r
  int64_t rows;
  int64_t dim;
  bool normalized;
  bool by_norms;  // factors are scale·inverse, else scale
  bool marks;     // only with by_norms
  T scale;
  In* gathered;                      // [R, D]
  T* unit;                           // [R, D]: over their norms where normalised
  T* inverse;                        // [R]: 1/|row|, 0 of a zero row
  typename Kept<In>::type* carried;  // [R, D]: unit, with 0 in the place of what is not finite
  T* factors;                        // [R]: what the scores kernel multiplies products with the row by, −1 for negative ids
};

template <typename In>
cudaError_t launch_shared_rows(const SharedRowsTask<In>& task, cudaStream_t stream);

// The scores of the rows' positives and extra positives.
template <typename In>
struct PositiveScoresTask {
  using T = typename Compute<In>::type;
  const T* unit_queries;  // [B, D]
  const In* items;        // [I, D]
  Pairs pairs;            // without negatives
  int64_t rows;
  int64_t dim;
  bool normalized;
  T scale;     // of the similarity
  T* pos;      // [B]; 0 for padding
  T* extra;    // [B, M]; −∞ for padding
  T* inverse;  // [B, 1 + M]: 1/|item|, 0 of a zero row; 1 where nothing is normalised
};

template <typename In>
cudaError_t launch_positive_scores(const PositiveScoresTask<In>& task, cudaStream_t stream);

// The rows' way back: from the gradients of their scores to those of the queries.
template <typename In>
struct QueryGradientTask {
  using T = typename Compute<In>::type;
  const T* unit_queries;   // [B, D]
  const T* query_inverse;  // [B]: 1/|query|, or null: not normalised
  const In* items;         // [I, D]
  Pairs pairs;             // without negatives
  const T* inverse;        // [B, 1 + M], from the scores
  const T* d_pos;          // [B]
  const T* d_extra;        // [B, M]
  const bool* live;        // [B]: the query of another row may hold anything, and gets 0
  int64_t rows;
  int64_t dim;
  T scale;          // of the similarity
  T* coefficients;  // [B, 1 + M]
  T* d_queries;     // [B, D]: in, the negatives' part without the scale; out, the gradients
};

template <typename In>
cudaError_t launch_query_gradient(const QueryGradientTask<In>& task, cudaStream_t stream);

// ---- shared negatives that a row leaves out: exclusion_kernel.cu ----------------------------------------------------

// The keys of columns, which are items, for sort_pairs(): `unsorted_keys` and `unsorted_places`.
cudaError_t launch_column_keys(const int64_t* ids, const SortedPairs& pairs, cudaStream_t stream);

// The columns sorted by their items, to lists: first_column[item], next_column[that], …, to −1.
struct ColumnListTask {
  const uint32_t* keys;     // [N], sorted; I is padding
  const uint32_t* columns;  // [N]
  int64_t n;
  int64_t num_items;
  int32_t* first_column;  // [I], −1 in all
  int32_t* next_column;   // [N]
};

cudaError_t launch_column_lists(const ColumnListTask& task, cudaStream_t stream);

// ids, first_column = 0, 1, …, I − 1; next_column = −1.
struct CatalogueTask {
  int64_t num_items;
  int64_t* ids;           // [I] each
  int32_t* first_column;
  int32_t* next_column;
};

cudaError_t launch_catalogue(const CatalogueTask& task, cudaStream_t stream);

// values[b, c] = −∞ in the columns c of row b's own positive and of its query's known positives.
template <typename T>
struct ExclusionTask {
  NegativeSource source;  // query_ids and known positives only
  int64_t num_known;      // of all queries
  const int64_t* pos_ids;       // [B]; a row without a positive leaves nothing out
  const int32_t* first_column;  // [I]: the columns of an item are first_column[item], next_column[that], …, to −1
  const int32_t* next_column;   // [N]
  int64_t num_items;
  int64_t rows;
  int64_t n;
  T* values;          // [B, N]
  int32_t* excluded;  // [B] or null: how many they are
};

template <typename T>
cudaError_t launch_exclusion(const ExclusionTask<T>& task, cudaStream_t stream);

// ---- over rows: reduce_kernel.cu ------------------------------------------------------------------------------------

template <typename T>
struct ReductionTask {
  const T* losses;   // [B]
  const bool* live;  // [B]
  int64_t rows;
  bool mean;  // over the live rows; else the sum
  T* loss;    // one number
  T* rescale;  // B over the live rows, of which there is at least one; only for a mean
};

template <typename T>
cudaError_t launch_reduction(const ReductionTask<T>& task, cudaStream_t stream);

// x [B, W] *= factor, one number or one per row. Where that is 1, x is neither read nor written.
template <typename E>
struct ScaleTask {
  E* x;
  const typename Compute<E>::type* factor;  // [B] or [1]
  bool factor_per_row;
  int64_t rows;
  int64_t width;
};

template <typename E>
cudaError_t launch_scale(const ScaleTask<E>& task, cudaStream_t stream);

// out [B, W] = x·factor·scale; where not `keeps_all`, 0 in the place of what is not finite.
template <typename X, typename E>
struct ScaledCopyTask {
  const X* x;
  const typename Compute<E>::type* factor;  // [B] or [1], or null: 1
  bool factor_per_row;
  double scale;
  bool keeps_all;
  int64_t rows;
  int64_t width;
  E* out;
};

template <typename X, typename E>
cudaError_t launch_scaled_copy(const ScaledCopyTask<X, E>& task, cudaStream_t stream);

// sum += x, of this many elements
template <typename T>
cudaError_t launch_add(const T* x, T* sum, int64_t count, cudaStream_t stream);

// ---- drawn negatives: draw_kernel.cu --------------------------------------------------------------------------------

template <typename T>
struct DrawTask {
  NegativeSource source;
  int64_t num_known;  // of all queries
  int64_t first_row;  // of the batch
  int64_t rows;
  int64_t n;
  int32_t* ids;          // [rows, n], −1 where every item is a known positive, and in rows of padding
  const T* log_weights;  // [I], these two or none
  T* log_q;              // [rows, n]: the log weight of each id, 0 for −1
};

template <typename T>
cudaError_t launch_draw(const DrawTask<T>& task, cudaStream_t stream);

// ---- from embeddings: embeddings_online_kernel.cu, embeddings_kernel.cu ----------------------------------------------

template <typename In>
struct EmbeddingsTask {
  using T = typename Compute<In>::type;
  cw_ext::LossArguments arguments;
  int64_t rows;
  const In* queries;  // [B, D]
  const In* items;    // [I, D]
  int64_t dim;
  Pairs pairs;
  const T* log_q;  // [B, N] or null
  int64_t log_q_stride;
  RowInputs<T> values;
  Curve<T> curve;
  T scale;          // of the similarity
  bool normalized;  // cosine
  bool with_gradients;
  RowResults<T> out;
  T* d_queries;     // [B, D]
  T* unit_queries;  // [B, D]
  T* coefficients;  // [B, 1 + M + N]
  T* scratch;       // [blocks, 1 + M + N]    these two for launch_embeddings() only
  int blocks;       // from embeddings_blocks()
};

// Whether each item row needs to be read only once: rows of at most 1 KiB in whole 16 bytes, no gradient through the
// denominator.
template <typename In>
bool goes_online(const EmbeddingsTask<In>& task);

template <typename In>
cudaError_t launch_embeddings_online(const EmbeddingsTask<In>& task, cudaStream_t stream);

// As many blocks as the current device holds at a time, at most one per row; 0 where D is too large for it.
template <typename In>
cudaError_t embeddings_blocks(const EmbeddingsTask<In>& task, int* blocks);

// Any task, reading each item row twice.
template <typename In>
cudaError_t launch_embeddings(const EmbeddingsTask<In>& task, cudaStream_t stream);

// ---- scores of given items, without a loss: candidate_scores_kernel.cu ---------------------------------------------

template <typename In>
struct CandidateScoresTask {
  using T = typename Compute<In>::type;
  const In* queries;  // [B, D]
  const In* items;    // [I, D]
  int64_t num_items;
  const void* ids;  // [B, K]
  bool wide_ids;    // int64, else int32
  int64_t rows;
  int64_t k;
  int64_t dim;
  T scale;          // of the similarity
  bool normalized;  // cosine
  T* out;           // [B, K]; −∞ for an id of −1
};

// cudaErrorInvalidConfiguration where D is too large for the current device.
template <typename In>
cudaError_t launch_candidate_scores(const CandidateScoresTask<In>& task, cudaStream_t stream);

// ---- the gradient of the item table: item_gradient_kernel.cu, sorted_sum_kernel.cu ----------------------------------

// sum[id(b, c)] += coefficient[b, c]·source[b], over the pairs c of all rows b.
template <typename T>
struct ItemSumTask {
  const T* sources;       // [B, D]
  const T* coefficients;  // [B, 1 + M + N], or null: all are 1
  Pairs pairs;
  int64_t rows;
  int64_t dim;
  T* sum;  // [I, D]
};

// By atomic additions; `sum` must hold zeros or a sum to add to.
template <typename T>
cudaError_t launch_atomic_sum(const ItemSumTask<T>& task, cudaStream_t stream);

// Fills the unsorted keys and places of the pairs of `task`, from `first` on.
template <typename T>
cudaError_t launch_sort_keys(const ItemSumTask<T>& task, int64_t first, const SortedPairs& pairs, cudaStream_t stream);

// The sums of ItemSumTask over sorted pairs, in an order that only the ids and sizes decide: sorted_sum_kernel.cu. Place
// p < rows·width is a pair as there; a place beyond has source further + (p − rows·width) and coefficient 1. Rows of
// `sum` without a pair are left alone.
template <typename T>
struct SortedSumTask {
  const T* sources;       // [S, D]
  const T* coefficients;  // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t further;
  int64_t dim;
  const uint32_t* keys;    // [P], sorted
  const uint32_t* places;  // [P]
  int64_t count;           // P, below 2^31
  int64_t num_items;       // below 2^31
  bool accumulate;  // add to `sum`
  int span;         // span_of(count): pairs in a part of the work
  T* carry;         // [⌈P / span⌉, 2, D]
  T* sum;           // [I, D]
};

int span_of(int64_t count);

template <typename T>
cudaError_t launch_sorted_sum(const SortedSumTask<T>& task, cudaStream_t stream);

// The gradient of each x from that of x̂ = x/|x|, in the dtype of the items. A zero row stays zero, for any item.
// `gradient` may be `sum` itself.
template <typename In>
struct ProjectionTask {
  using T = typename Compute<In>::type;
  const T* sum;     // [I, D]
  const In* items;  // [I, D]
  int64_t num_items;
  int64_t dim;
  In* gradient;  // [I, D]
};

template <typename In>
cudaError_t launch_projection(const ProjectionTask<In>& task, cudaStream_t stream);

}  // namespace cw_cuda
