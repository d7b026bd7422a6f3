// The CPU kernels' interface: plain pointers and sizes, no torch. Each instruction set has its own copy of the kernels
// (kernels_default.cpp, kernels_avx2.cpp, kernels_avx512.cpp), in a namespace of its own.
#pragma once

#include <cstdint>

#include "../kernel_types.h"

namespace cw_cpu {

using cw_ext::Compute;
using cw_ext::RowResults;
using cw_ext::RowValue;

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
  RowValue<T> prior;
  RowValue<T> threshold;
  RowResults<T> out;
  T* d_pos;    // [B]; null: no gradients wanted
  T* d_neg;    // [B, N]
  T* d_extra;  // [B, M]
};

// An id out of range: where it stands in its id tensor, and what it is.
struct BadId {
  const char* name = nullptr;
  int64_t row = 0;
  int64_t id = 0;
};

template <typename In, typename Id>
struct EmbeddingsTask {
  using T = typename Compute<In>::type;
  cw_ext::LossArguments arguments;
  const In* queries;  // [B, D]
  const In* items;    // [I, D]
  int64_t num_items;
  int64_t dim;
  const int64_t* pos_ids;  // [B]
  const Id* neg_ids;       // [B, N]
  int64_t n;
  const int64_t* extra_ids;  // [B, M]
  int64_t m;
  const T* log_q;  // [B, N] or null
  int64_t log_q_stride;
  RowValue<T> prior;
  RowValue<T> threshold;
  T scale;               // of the similarity
  bool normalized;       // cosine
  const T* inverse_norms;  // [I], or null: computed row by row
  RowResults<T> out;
  T* unit_queries;  // [B, D]; null: no gradients wanted
  T* d_queries;     // [B, D]
  T* coefficients;  // [B, 1 + M + N]: dloss/dscore · scale, of the positive, the further positives, the negatives
};

// The gradient of the item table, item by item: entry e of the list `order`, sorted by item, is the place p of a pair in
// the coefficients' layout. Pair p < rows·width has source row p / width and coefficient coefficients[p]; a pair
// beyond has source row rows + (p − rows·width) and coefficient 1.
template <typename In, typename Place>
struct ItemGradientTask {
  using T = typename Compute<In>::type;
  const In* items;  // [I, D]
  int64_t dim;
  bool normalized;
  const T* sources;       // [S, D]
  const T* coefficients;  // [rows, width]
  int64_t rows;
  int64_t width;
  const Place* order;      // [P]
  const int64_t* offsets;  // [I + 1]
  In* gradient;            // [I, D]
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

// How many values of the compute type a thread needs as scratch.
inline int64_t scores_scratch(int64_t n, int64_t m) { return 3 * (n + m); }
inline int64_t embeddings_scratch(int64_t n, int64_t m, int64_t dim) { return 7 * (n + m + 1) + 2 * dim; }
inline int64_t item_gradient_scratch(int64_t dim) { return 3 * dim; }

#define CW_DECLARE_KERNELS(NAMESPACE)                                                                                \
  namespace NAMESPACE {                                                                                              \
  template <typename In>                                                                                             \
  void scores(const ScoresTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch);          \
  template <typename In>                                                                                             \
  void scale_rows(const ScaleRowsTask<In>& task, int64_t begin, int64_t end);                                        \
  template <typename In, typename Id>                                                                                \
  BadId embeddings(const EmbeddingsTask<In, Id>& task, int64_t begin, int64_t end,                                   \
                   typename Compute<In>::type* scratch);                                                             \
  template <typename In>                                                                                             \
  void inverse_norms(const In* x, int64_t dim, typename Compute<In>::type* out, int64_t begin, int64_t end);         \
  template <typename In, typename Place>                                                                             \
  void item_gradient(const ItemGradientTask<In, Place>& task, int64_t begin, int64_t end,                            \
                     typename Compute<In>::type* scratch);                                                           \
  }

CW_DECLARE_KERNELS(isa_default)
#if defined(__x86_64__)
CW_DECLARE_KERNELS(isa_avx2)
CW_DECLARE_KERNELS(isa_avx512)
#endif

}  // namespace cw_cpu
