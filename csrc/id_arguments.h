// The similarity, the ids and the known positives that the embeddings and the sampled ops take.
#pragma once

#include "checks.h"
#include "shared_negatives.h"

namespace cw_ext {

// Known positives: those of query u are known[starts[u]:starts[u + 1]]; query_ids [B]. With `exclude`, rows leave out the
// shared negatives that are their positive or known positives of their query.
#define CW_HISTORY_SCHEMA "Tensor? query_ids, Tensor? starts, Tensor? known"
#define CW_HISTORY_PARAMETERS \
  const OptionalTensor &query_ids, const OptionalTensor &starts, const OptionalTensor &known
#define CW_EXCLUSION_SCHEMA "bool exclude, " CW_HISTORY_SCHEMA
#define CW_EXCLUSION_PARAMETERS bool exclude, CW_HISTORY_PARAMETERS

struct Similarity {
  double scale;
  bool normalized;
};

inline Similarity similarity_of(std::string_view name) {
  switch (index_of(name, {"half_cosine", "cosine", "dot"}, "similarity")) {
    case 0:
      return {0.5, true};
    case 1:
      return {1, true};
    default:
      return {1, false};
  }
}

inline bool is_id_type(const Tensor& x) { return x.scalar_type() == kInt || x.scalar_type() == kLong; }

struct PositiveIds {
  Tensor pos;    // [B] int64
  Tensor extra;  // [B, M] int64
};

inline PositiveIds check_positive_ids(const Tensor& like, int64_t rows, const Tensor& pos_ids,
                                      const OptionalTensor& extra_ids) {
  CW_CHECK_TYPE(is_id_type(pos_ids) && (!extra_ids || is_id_type(*extra_ids)), "ids must be int32 or int64");
  check_shape(pos_ids, {rows}, "pos_ids", like);
  const Tensor pos = as_long(pos_ids);
  if (!extra_ids) return {pos, empty({rows, 0}, options_of(pos))};
  CW_CHECK_VALUE(extra_ids->dim() == 2, "extra_ids must be [B, M], got ", extra_ids->sizes());
  check_shape(*extra_ids, {rows, extra_ids->size(1)}, "extra_ids", like);
  return {pos, as_long(*extra_ids)};
}

struct NegativeIds {
  Tensor own;     // [B, N], or undefined
  Tensor shared;  // [N] int64, or undefined
  int64_t n;
};

inline NegativeIds check_negative_ids(const Tensor& like, int64_t rows, const Tensor& neg_ids) {
  CW_CHECK_VALUE(neg_ids.dim() == 1 || neg_ids.dim() == 2, "neg_ids must be [B, N] or [N], got ", neg_ids.sizes());
  const int64_t n = neg_ids.size(-1);
  CW_CHECK_VALUE(n > 0, "neg_ids must hold at least one negative per row, got ", neg_ids.sizes());
  CW_CHECK_TYPE(is_id_type(neg_ids), "ids must be int32 or int64");
  if (neg_ids.dim() == 1) {
    check_shape(neg_ids, {n}, "neg_ids", like);
    return {{}, as_long(neg_ids), n};
  }
  check_shape(neg_ids, {rows, n}, "neg_ids", like);
  return {as_contiguous(neg_ids), {}, n};
}

// For int64 ids that no kernel checks. On CUDA, indexing asserts.
inline void check_range(const Tensor& ids, int64_t items, const char* name) {
  if (kCuda) return;
  const auto* const id = static_cast<const int64_t*>(ids.const_data_ptr());
  for (int64_t i = 0; i < ids.numel(); ++i) {
    CW_CHECK_INDEX(-1 <= id[i] && id[i] < items, name, " must be in [0, ", items, "), or −1 for padding, got ", id[i]);
  }
}

// The known positives of the rows, or none.
inline History history(CW_HISTORY_PARAMETERS, int64_t rows, const Tensor& like) {
  CW_CHECK_VALUE(starts.has_value() == query_ids.has_value() && known.has_value() == query_ids.has_value(),
                    "query_ids, starts and known go together");
  if (!query_ids) return {};
  check_shape(*query_ids, {rows}, "query_ids", like);
  CW_CHECK_TYPE(is_id_type(*query_ids), "query_ids must be int32 or int64, got ", query_ids->scalar_type());
  CW_CHECK_VALUE(starts->dim() == 1 && starts->size(0) > 0 && starts->device() == like.device(),
                    "starts must be [Q + 1] on ", like.device(), ", got ", starts->sizes());
  CW_CHECK_VALUE(known->dim() == 1 && known->device() == like.device(), "known must be [P] on ", like.device(),
                    ", got ", known->sizes());
  check_type(*starts, kLong, "starts");
  check_type(*known, kInt, "known");
  const History result{as_long(*query_ids), as_contiguous(*starts), as_contiguous(*known)};
  if (kCuda) return result;
  // Kernels read at these offsets.
  const int64_t queries = starts->size(0) - 1;
  const int64_t* const ids = static_cast<const int64_t*>(result.query_ids.const_data_ptr());
  const int64_t* const bounds = static_cast<const int64_t*>(result.starts.const_data_ptr());
  for (int64_t b = 0; b < rows; ++b) {
    if (ids[b] == -1) continue;  // a row of padding
    CW_CHECK_INDEX(ids[b] >= 0 && ids[b] < queries, "query_ids must be in [0, ", queries,
                      "), or −1 for padding, got ", ids[b], " in row ", b);
    const int64_t first = bounds[ids[b]], last = bounds[ids[b] + 1];
    CW_CHECK_VALUE(0 <= first && first <= last && last <= known->size(0), "starts must rise from 0 to ",
                      known->size(0), ", got ", first, " and ", last);
  }
  return result;
}

}  // namespace cw_ext
