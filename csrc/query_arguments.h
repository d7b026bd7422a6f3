// What the embeddings and the sampled ops take and return, without their negatives.
#pragma once

#include "id_arguments.h"
#include "loss_arguments.h"

namespace cw_ext {

inline void check_tables(const Tensor& queries, const Tensor& items) {
  CW_CHECK_VALUE(queries.dim() == 2 && items.dim() == 2 && queries.size(1) > 0,
                    "queries must be [B, D] and items [I, D], got ", queries.sizes(), " and ", items.sizes());
  check_shape(items, {items.size(0), queries.size(1)}, "items", queries);
  check_type(items, queries.scalar_type(), "items");
}

// For calls that always read the items, because negatives are drawn from them, or are all of them.
inline void check_items(const Tensor& items) {
  CW_CHECK_VALUE(items.size(0) > 0, "items must have at least one row, got ", items.sizes());
}

// Fills the inputs of the call, and allocates its results except the coefficients.
inline void fill_query_call(QueryCall& call, const Tensor& queries, const Tensor& items,
                            const PositiveIds& positives, Loss loss, std::string_view similarity, bool with_gradients) {
  const auto options = options_of(queries, compute_type(queries));
  const int64_t rows = queries.size(0), dim = queries.size(1);
  call.loss = std::move(loss);
  call.queries = as_contiguous(queries);
  call.items = as_contiguous(items);
  call.pos_ids = positives.pos;
  call.extra_ids = positives.extra;
  const Similarity score = similarity_of(similarity);
  call.scale = score.scale;
  call.normalized = score.normalized;
  call.with_gradients = with_gradients;
  call.out = allocate_rows(rows, call.loss, options);
  if (!with_gradients) return;
  call.d_queries = empty({rows, dim}, options);
  call.unit_queries = empty({rows, dim}, options);
}

}  // namespace cw_ext
