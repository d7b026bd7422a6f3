// What the ops have in common: the loss's arguments in their schemas, checks, allocation and reduction.
//
// Python checks what a user hands over and words it for him (cw_ext/checks.py). The checks here keep memory safe
// whoever calls the op.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "allocate.h"
#include "backend.h"
#include "shared_negatives.h"

namespace cw_ext {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of the loss, in the order of cw_ext.parameters.RowParameters.
#define CW_LOSS_SCHEMA                                                                                \
  "Tensor? prior_rows, float prior, Tensor? threshold_rows, float threshold, float temperature, "    \
  "str weighting, float weight_temperature, bool detach_weights, bool normalize_weights, "           \
  "float floor, float? min_margin, float? confidence_temperature, bool include_positive, str surrogate"
#define CW_LOSS_PARAMETERS                                                                            \
  const OptionalTensor &prior_rows, double prior, const OptionalTensor &threshold_rows,              \
      double threshold, double temperature, c10::string_view weighting, double weight_temperature,   \
      bool detach_weights, bool normalize_weights, double floor, std::optional<double> min_margin,   \
      std::optional<double> confidence_temperature, bool include_positive, c10::string_view surrogate
#define CW_LOSS_ARGUMENTS                                                                             \
  loss_arguments(temperature, weighting, weight_temperature, detach_weights, normalize_weights,      \
                 floor, min_margin, confidence_temperature, include_positive, surrogate, reduction, rows)

// Known positives: those of query u are known[starts[u]:starts[u + 1]]; query_ids [B]. With `exclude`, rows leave out the
// shared negatives that are their positive or known positives of their query.
#define CW_HISTORY_SCHEMA "Tensor? query_ids, Tensor? starts, Tensor? known"
#define CW_HISTORY_PARAMETERS \
  const OptionalTensor &query_ids, const OptionalTensor &starts, const OptionalTensor &known
#define CW_EXCLUSION_SCHEMA "bool exclude, " CW_HISTORY_SCHEMA
#define CW_EXCLUSION_PARAMETERS bool exclude, CW_HISTORY_PARAMETERS

inline int index_of(c10::string_view value, std::initializer_list<c10::string_view> choices, const char* name) {
  int i = 0;
  for (const auto choice : choices) {
    if (choice == value) return i;
    ++i;
  }
  TORCH_CHECK_VALUE(false, name, " is unknown: ", std::string(value));
}

inline LossArguments loss_arguments(double temperature, c10::string_view weighting, double weight_temperature,
                             bool detach_weights, bool normalize_weights, double floor,
                             std::optional<double> min_margin, std::optional<double> confidence_temperature,
                             bool include_positive, c10::string_view surrogate, c10::string_view reduction,
                             int64_t rows) {
  // The gradient of a mean comes out divided by all rows, so that where all are live nothing is left to multiply.
  const double gradient_scale = reduction == "mean" && rows > 0 ? 1.0 / double(rows) : 1.0;
  return {temperature,
          index_of(weighting, {"none", "sigmoid", "exponential", "linear"}, "weighting"),
          weight_temperature,
          detach_weights,
          normalize_weights,
          floor,
          min_margin.has_value(),
          min_margin.value_or(0),
          confidence_temperature.has_value(),
          confidence_temperature.value_or(1),
          include_positive,
          index_of(surrogate, {"exp", "tanh", "atan", "relu"}, "surrogate"),
          gradient_scale};
}

inline at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// What the gradients of the negatives' scores are kept in until backward. CUDA keeps bf16 in bf16, which has the range of
// fp32; in fp16 those of a mean would vanish.
inline at::TensorOptions kept_options(const at::Tensor& like) {
  const bool narrow = on_cuda(like) && like.scalar_type() == at::kBFloat16;
  return like.options().dtype(narrow ? at::kBFloat16 : compute_type(like));
}

inline void check_shape(const at::Tensor& x, at::IntArrayRef shape, const char* name, const at::Tensor& like) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, " must have shape ", shape, ", got ", x.sizes());
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " must be on ", like.device(), ", got ", x.device());
}

inline void check_type(const at::Tensor& x, at::ScalarType type, const char* name) {
  TORCH_CHECK_TYPE(x.scalar_type() == type, name, " must have dtype ", type, ", got ", x.scalar_type());
}

inline PerRow per_row(const OptionalTensor& rows, double value, int64_t count, const char* name, const at::Tensor& like) {
  if (!rows) return {at::Tensor(), value};
  check_shape(*rows, {count}, name, like);
  check_type(*rows, compute_type(like), name);
  return {*rows, 0};
}

// Contiguous within a row, whatever the rows' stride.
inline at::Tensor with_contiguous_rows(const at::Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous(); }

inline at::Tensor log_weights(const OptionalTensor& log_q, int64_t rows, int64_t n, const at::Tensor& like) {
  if (!log_q) return {};
  check_shape(*log_q, {rows, n}, "log_q", like);
  check_type(*log_q, compute_type(like), "log_q");
  return with_contiguous_rows(*log_q);
}

inline RowOutputs allocate_rows(int64_t rows, int64_t n, bool with_log_q_gradient, const at::TensorOptions& options) {
  return {at::empty({rows}, options), at::empty({rows}, options.dtype(at::kBool)),
          with_log_q_gradient ? at::empty({rows, n}, options) : at::Tensor(), at::empty({rows}, options),
          at::empty({rows}, options)};
}

inline at::Tensor or_empty(const at::Tensor& x, const at::TensorOptions& options) {
  return x.defined() ? x : at::empty({0}, options);
}

struct Reduced {
  at::Tensor loss;   // [B], or one number
  at::Tensor rescale;  // of a mean: what is left to multiply the rows' gradients by, all rows over the live ones; else empty
};

// The mean runs over the live rows; the loss of the others is 0.
inline Reduced reduced(const RowOutputs& rows, c10::string_view reduction) {
  const int kind = index_of(reduction, {"none", "sum", "mean"}, "reduction");
  const bool mean = kind == 2;
  const auto options = rows.loss.options();
  if (kind == 0) return {rows.loss, at::empty({0}, options)};
  const Reduced result{at::empty({}, options), mean ? at::empty({}, options) : at::empty({0}, options)};
#ifdef CW_WITH_CUDA
  if (on_cuda(rows.loss)) {
    cw_cuda::reduce_rows(rows, mean, result.loss, result.rescale);
    return result;
  }
#endif
  // A few numbers, for which a call of ATen takes longer than to add them.
  const auto reduce = [&](auto element) {
    using T = decltype(element);
    const T* const loss = rows.loss.const_data_ptr<T>();
    const bool* const live = rows.live.const_data_ptr<bool>();
    double total = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < rows.loss.numel(); ++b) {
      total += double(loss[b]);
      count += live[b];
    }
    count = std::max<int64_t>(1, count);
    *result.loss.mutable_data_ptr<T>() = T(mean ? total / double(count) : total);
    if (mean) *result.rescale.mutable_data_ptr<T>() = T(double(rows.loss.numel()) / double(count));
  };
  rows.loss.scalar_type() == at::kDouble ? reduce(double{}) : reduce(float{});
  return result;
}

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

struct Ids {
  at::Tensor pos;    // [B] int64
  at::Tensor neg;    // [B, N], or undefined
  at::Tensor shared; // [N] int64, or undefined
  at::Tensor extra;  // [B, M] int64
  int64_t n;
};

inline bool is_id_type(const at::Tensor& x) { return x.scalar_type() == at::kInt || x.scalar_type() == at::kLong; }

inline Ids check_ids(const at::Tensor& table_like, int64_t rows, const at::Tensor& pos_ids, const at::Tensor& neg_ids,
              const OptionalTensor& extra_ids) {
  TORCH_CHECK_VALUE(neg_ids.dim() == 1 || neg_ids.dim() == 2, "neg_ids must be [B, N] or [N], got ", neg_ids.sizes());
  Ids ids;
  ids.n = neg_ids.size(-1);
  TORCH_CHECK_VALUE(ids.n > 0, "neg_ids must hold at least one negative per row, got ", neg_ids.sizes());
  TORCH_CHECK_TYPE(is_id_type(pos_ids) && is_id_type(neg_ids) && (!extra_ids || is_id_type(*extra_ids)),
                   "ids must be int32 or int64");
  check_shape(pos_ids, {rows}, "pos_ids", table_like);
  ids.pos = pos_ids.to(at::kLong).contiguous();
  if (neg_ids.dim() == 1) {
    check_shape(neg_ids, {ids.n}, "neg_ids", table_like);
    ids.shared = neg_ids.to(at::kLong).contiguous();
  } else {
    check_shape(neg_ids, {rows, ids.n}, "neg_ids", table_like);
    ids.neg = neg_ids.contiguous();
  }
  if (extra_ids) {
    TORCH_CHECK_VALUE(extra_ids->dim() == 2, "extra_ids must be [B, M], got ", extra_ids->sizes());
    check_shape(*extra_ids, {rows, extra_ids->size(1)}, "extra_ids", table_like);
    ids.extra = extra_ids->to(at::kLong).contiguous();
  } else {
    ids.extra = at::empty({rows, 0}, ids.pos.options());
  }
  return ids;
}

// Where no kernel looks at each id itself. On CUDA, indexing asserts.
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
  // Kernels read where these point.
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
  // The columns in the order of their items: each points to the one after it, where that has the same item.
  const at::Tensor order = ids.argsort(/*stable=*/true);
  const at::Tensor sorted = ids.index_select(0, order);
  const at::Tensor columns = order.to(at::kInt);
  const int64_t n = ids.size(0);
  const at::Tensor same = sorted.narrow(0, 1, n - 1) == sorted.narrow(0, 0, n - 1);
  next.index_copy_(0, order.narrow(0, 0, n - 1), columns.narrow(0, 1, n - 1).where(same, at::full({}, -1, ints)));
  // Columns that are not an item's first are sent to a place that is cut off.
  const at::Tensor begins = at::cat({sorted.narrow(0, 0, 1) >= 0, same.logical_not().logical_and_(sorted.narrow(0, 1, n - 1) >= 0)});
  at::Tensor room = at::full({num_items + 1}, -1, ints);
  room.index_put_({sorted.where(begins, at::full({}, num_items, sorted.options()))}, columns);
  return {room.narrow(0, 0, num_items), next, history};
}

}  // namespace cw_ext
