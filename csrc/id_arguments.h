// The similarity, the ids and the known positives that levels 2 and 3 take.
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

inline Similarity similarity_of(c10::string_view name) {
  switch (index_of(name, {"half_cosine", "cosine", "dot"}, "similarity")) {
    case 0:
      return {0.5, true};
    case 1:
      return {1, true};
    default:
      return {1, false};
  }
}

inline bool is_id_type(const at::Tensor& x) { return x.scalar_type() == at::kInt || x.scalar_type() == at::kLong; }

struct PositiveIds {
  at::Tensor pos;    // [B] int64
  at::Tensor extra;  // [B, M] int64
};

inline PositiveIds check_positive_ids(const at::Tensor& like, int64_t rows, const at::Tensor& pos_ids,
                                      const OptionalTensor& extra_ids) {
  TORCH_CHECK_TYPE(is_id_type(pos_ids) && (!extra_ids || is_id_type(*extra_ids)), "ids must be int32 or int64");
  check_shape(pos_ids, {rows}, "pos_ids", like);
  const at::Tensor pos = pos_ids.to(at::kLong).contiguous();
  if (!extra_ids) return {pos, empty({rows, 0}, pos.options())};
  TORCH_CHECK_VALUE(extra_ids->dim() == 2, "extra_ids must be [B, M], got ", extra_ids->sizes());
  check_shape(*extra_ids, {rows, extra_ids->size(1)}, "extra_ids", like);
  return {pos, extra_ids->to(at::kLong).contiguous()};
}

struct NegativeIds {
  at::Tensor own;     // [B, N], or undefined
  at::Tensor shared;  // [N] int64, or undefined
  int64_t n;
};

inline NegativeIds check_negative_ids(const at::Tensor& like, int64_t rows, const at::Tensor& neg_ids) {
  TORCH_CHECK_VALUE(neg_ids.dim() == 1 || neg_ids.dim() == 2, "neg_ids must be [B, N] or [N], got ", neg_ids.sizes());
  const int64_t n = neg_ids.size(-1);
  TORCH_CHECK_VALUE(n > 0, "neg_ids must hold at least one negative per row, got ", neg_ids.sizes());
  TORCH_CHECK_TYPE(is_id_type(neg_ids), "ids must be int32 or int64");
  if (neg_ids.dim() == 1) {
    check_shape(neg_ids, {n}, "neg_ids", like);
    return {{}, neg_ids.to(at::kLong).contiguous(), n};
  }
  check_shape(neg_ids, {rows, n}, "neg_ids", like);
  return {neg_ids.contiguous(), {}, n};
}

// For ids that no kernel checks. On CUDA, indexing asserts.
inline void check_range(const at::Tensor& ids, int64_t items, const char* name) {
  if (!ids.defined() || on_cuda(ids) || ids.numel() == 0) return;
  const at::Tensor outside = at::logical_or(ids < -1, ids >= items);
  if (!outside.any().item<bool>()) return;
  TORCH_CHECK_INDEX(false, name, " must be in [0, ", items, "), or −1 for padding, got ",
                    ids.masked_select(outside)[0].item<int64_t>());
}

// The known positives of the rows, or none.
inline History history(CW_HISTORY_PARAMETERS, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK_VALUE(starts.has_value() == query_ids.has_value() && known.has_value() == query_ids.has_value(),
                    "query_ids, starts and known go together");
  if (!query_ids) return {};
  check_shape(*query_ids, {rows}, "query_ids", like);
  TORCH_CHECK_TYPE(is_id_type(*query_ids), "query_ids must be int32 or int64, got ", query_ids->scalar_type());
  TORCH_CHECK_VALUE(starts->dim() == 1 && starts->size(0) > 0 && starts->device() == like.device(),
                    "starts must be [Q + 1] on ", like.device(), ", got ", starts->sizes());
  TORCH_CHECK_VALUE(known->dim() == 1 && known->device() == like.device(), "known must be [P] on ", like.device(),
                    ", got ", known->sizes());
  check_type(*starts, at::kLong, "starts");
  check_type(*known, at::kInt, "known");
  const History result{query_ids->to(at::kLong).contiguous(), starts->contiguous(), known->contiguous()};
  if (on_cuda(like)) return result;
  // Kernels read at these offsets.
  const int64_t queries = starts->size(0) - 1;
  const int64_t* const ids = result.query_ids.const_data_ptr<int64_t>();
  const int64_t* const bounds = result.starts.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < rows; ++b) {
    if (ids[b] == -1) continue;  // a row of padding
    TORCH_CHECK_INDEX(ids[b] >= 0 && ids[b] < queries, "query_ids must be in [0, ", queries,
                      "), or −1 for padding, got ", ids[b], " in row ", b);
    const int64_t first = bounds[ids[b]], last = bounds[ids[b] + 1];
    TORCH_CHECK_VALUE(0 <= first && first <= last && last <= known->size(0), "starts must rise from 0 to ",
                      known->size(0), ", got ", first, " and ", last);
  }
  return result;
}

// The columns of each item among `ids` [N] of shared negatives, all in range or −1.
inline Exclusion exclusion(const at::Tensor& ids, int64_t num_items, const History& history) {
  const auto ints = ids.options().dtype(at::kInt);
  const at::Tensor next = at::full({ids.size(0)}, -1, ints);
  if (!on_cuda(ids)) {
    const at::Tensor first = at::full({num_items}, -1, ints);
    const int64_t* const id = ids.const_data_ptr<int64_t>();
    int32_t* const firsts = first.mutable_data_ptr<int32_t>();
    int32_t* const nexts = next.mutable_data_ptr<int32_t>();
    for (int64_t c = ids.size(0) - 1; c >= 0; --c) {
      if (id[c] < 0) continue;
      nexts[c] = firsts[id[c]];
      firsts[id[c]] = int32_t(c);
    }
    return {first, next, history};
  }
  // The columns sorted by item: each points to the next if that has the same item.
  const at::Tensor order = ids.argsort(/*stable=*/true);
  const at::Tensor sorted = ids.index_select(0, order);
  const at::Tensor columns = order.to(at::kInt);
  const int64_t n = ids.size(0);
  const at::Tensor same = sorted.narrow(0, 1, n - 1) == sorted.narrow(0, 0, n - 1);
  next.index_copy_(0, order.narrow(0, 0, n - 1), columns.narrow(0, 1, n - 1).where(same, at::full({}, -1, ints)));
  // Columns that are not the first of their item are written to an element that is cut off.
  const at::Tensor begins = at::cat({sorted.narrow(0, 0, 1) >= 0, same.logical_not().logical_and_(sorted.narrow(0, 1, n - 1) >= 0)});
  at::Tensor room = at::full({num_items + 1}, -1, ints);
  room.index_put_({sorted.where(begins, at::full({}, num_items, sorted.options()))}, columns);
  return {room.narrow(0, 0, num_items), next, history};
}

}  // namespace cw_ext
