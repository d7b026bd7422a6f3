// The CUDA kernels' interface: plain pointers, sizes and a stream, no torch. All pointers are to device memory; a null
// pointer is an argument that was not given, or a result that nobody wants. Launchers never wait for the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../kernel_types.h"

namespace cw_cuda {

using cw_ext::Compute;
using cw_ext::RowResults;
using cw_ext::RowValue;

// The ids of level 2. A row's 1 + M + N pairs are, in this order, its positive, further positives and negatives.
struct Pairs {
  const int64_t* pos_ids;    // [B]
  const int64_t* extra_ids;  // [B, M]
  const void* neg_ids;       // [B, N]
  bool wide_neg_ids;         // int64, else int32
  int64_t m;
  int64_t n;
  int64_t num_items;
};

// ---- level 1: scores.cu --------------------------------------------------------------------------------------------

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
  RowValue<T> prior;
  RowValue<T> threshold;
  bool with_gradients;
  RowResults<T> out;
  T* d_pos;    // [B]
  T* d_neg;    // [B, N]
  T* d_extra;  // [B, M]
};

template <typename In>
cudaError_t launch_scores(const ScoresTask<In>& task, cudaStream_t stream);

// ---- level 2: embeddings.cu ----------------------------------------------------------------------------------------

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
  RowValue<T> prior;
  RowValue<T> threshold;
  T scale;          // of the similarity
  bool normalized;  // cosine
  bool with_gradients;
  RowResults<T> out;
  T* d_queries;     // [B, D]
  T* unit_queries;  // [B, D]
  T* coefficients;  // [B, 1 + M + N]
  T* scratch;       // [blocks, 1 + M + N]
  int blocks;       // from embeddings_blocks()
};

// As many blocks as the current device holds at a time, at most one per row; 0 where D is too large for it.
template <typename In>
cudaError_t embeddings_blocks(const EmbeddingsTask<In>& task, int* blocks);

template <typename In>
cudaError_t launch_embeddings(const EmbeddingsTask<In>& task, cudaStream_t stream);

// ---- the gradient of the item table: item_gradient.cu --------------------------------------------------------------

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

// The sort keys of the pairs: the item's id, or I for a pair that adds nothing.
template <typename T>
cudaError_t launch_sort_keys(const ItemSumTask<T>& task, int64_t* keys, cudaStream_t stream);

// By sorted segments, in an order that only the sizes decide; every row of `sum` is written. Place p < rows·width is a
// pair as in ItemSumTask; a place beyond has source rows + (p − rows·width) and coefficient 1.
template <typename T>
struct SortedSumTask {
  const T* sources;       // [S, D]
  const T* coefficients;  // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t dim;
  const int64_t* keys;    // [P], sorted
  const int64_t* places;  // [P], where each key stood before
  int64_t count;          // P
  int64_t num_items;
  T* sum;  // [I, D]
};

template <typename T>
cudaError_t launch_sorted_sum(const SortedSumTask<T>& task, cudaStream_t stream);

// The gradient of each x̂ = x/|x| carried to x, in the dtype of the items. A zero row stays zero, whatever the item
// holds. `gradient` may be `sum` itself.
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
