// From a call's tensors to a task's pointers, and calls on a part of the rows.
#pragma once

#include "../calls.h"
#include "kernels.h"
#include "torch_ops.h"

namespace cw_cuda {

template <typename Function>
void with_type(ScalarType type, Function&& function) {
  switch (type) {
    case kFloat:
      return function(float{});
    case kDouble:
      return function(double{});
    case kHalf:
      return function(__half{});
    case kBFloat16:
      return function(__nv_bfloat16{});
    default:
      CW_CHECK_TYPE(false, "expected a floating dtype, got ", type);
  }
}

// The types that rows are computed in.
template <typename Function>
void with_compute_type(ScalarType type, Function&& function) {
  type == kDouble ? function(double{}) : function(float{});
}

template <typename T>
const T* input(const Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

template <typename T>
T* output(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

inline int64_t row_stride(const Tensor& t) { return t.defined() ? t.stride(0) : 0; }

template <typename T>
RowInputs<T> row_inputs(const cw_ext::RowTensors& x) {
#define CW_VALUE(name) {input<T>(x.name.rows), row_stride(x.name.rows), x.name.value},
  return {CW_ROW_VALUES(CW_VALUE)};
#undef CW_VALUE
}

template <typename T>
RowResults<T> row_outputs(const cw_ext::RowOutputs& out) {
  return {output<T>(out.loss), output<bool>(out.live), output<T>(out.d_log_q), output<T>(out.d_values),
          out.d_values.defined() ? out.d_values.stride(0) : 0, output<T>(out.d_curve), output<int64_t>(out.above)};
}

template <typename T>
Curve<T> curve_input(const cw_ext::CurveTensors& x) {
  if (!x.log_weights.defined()) return {};
  return cw_ext::make_curve(input<T>(x.log_weights), x.log_weights.stride(0), x.log_weights.size(1), x.low, x.high,
                            x.on_margin);
}

inline Pairs pairs_of(const Tensor& pos_ids, const Tensor& extra_ids, const Tensor& neg_ids, int64_t num_items) {
  const bool wide = neg_ids.defined() && neg_ids.scalar_type() == kLong;
  return {input<int64_t>(pos_ids), input<int64_t>(extra_ids),
          neg_ids.defined() ? neg_ids.const_data_ptr() : nullptr,
          wide,
          extra_ids.defined() ? extra_ids.size(1) : 0,
          neg_ids.defined() ? neg_ids.size(1) : 0,
          num_items};
}

// A source with the fields that a history determines.
inline NegativeSource source_of(const cw_ext::History& history) {
  NegativeSource source{};
  if (!history.query_ids.defined()) return source;
  source.query_ids = input<int64_t>(history.query_ids);
  source.starts = input<int64_t>(history.starts);
  source.known = input<int32_t>(history.known);
  source.num_queries = history.starts.size(0) - 1;
  return source;
}

inline int64_t num_known(const cw_ext::History& history) { return history.known.defined() ? history.known.size(0) : 0; }

// ---- the rows [begin, begin + count) --------------------------------------------------------------------------------

inline cw_ext::Loss narrowed(const cw_ext::Loss& x, int64_t begin, int64_t count) {
#define CW_VALUE(name) {narrowed(x.values.name.rows, begin, count), x.values.name.value},
  const cw_ext::CurveTensors curve{narrowed(x.curve.log_weights, begin, count), x.curve.low, x.curve.high,
                                   x.curve.on_margin};
  return {x.arguments, {CW_ROW_VALUES(CW_VALUE)}, curve, x.with_curve_gradient};
#undef CW_VALUE
}

inline cw_ext::RowOutputs narrowed(const cw_ext::RowOutputs& x, int64_t begin, int64_t count) {
  return {narrowed(x.loss, begin, count),    narrowed(x.live, begin, count), narrowed(x.above, begin, count),
          narrowed(x.d_log_q, begin, count), narrowed(x.d_values, 1, begin, count), narrowed(x.d_curve, begin, count)};
}

}  // namespace cw_cuda
