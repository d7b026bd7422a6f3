// The loss's arguments in the ops: schema, parameters and checks, from the lists in loss_fields.h; and what every forward
// op returns of its rows.
#pragma once

#include <algorithm>
#include <cmath>

#include "calls.h"
#include "checks.h"

namespace cw_ext {

// Each ends with a comma: other arguments follow.
#define CW_SCHEMA_VALUE(name) "Tensor? " #name "_rows, float " #name ", "
#define CW_SCHEMA_NUMBER(name) "float " #name ", "
#define CW_SCHEMA_OPTIONAL(name) "float? " #name ", "
#define CW_SCHEMA_FLAG(name) "bool " #name ", "
#define CW_SCHEMA_CHOICE(name, list) "str " #name ", "
#define CW_LOSS_SCHEMA                                                                                     \
  CW_ROW_VALUES(CW_SCHEMA_VALUE)                                                                           \
  "Tensor? curve, float curve_low, float curve_high, bool curve_on_margin, "                               \
  CW_LOSS_FIELDS(CW_SCHEMA_NUMBER, CW_SCHEMA_OPTIONAL, CW_SCHEMA_FLAG, CW_SCHEMA_CHOICE)

#define CW_PARAMETER_VALUE(name) const OptionalTensor &name##_rows, double name,
#define CW_PARAMETER_NUMBER(name) double name,
#define CW_PARAMETER_OPTIONAL(name) std::optional<double> name,
#define CW_PARAMETER_FLAG(name) bool name,
#define CW_PARAMETER_CHOICE(name, list) const Text &name,
#define CW_LOSS_PARAMETERS                                                                         \
  CW_ROW_VALUES(CW_PARAMETER_VALUE)                                                                \
  const OptionalTensor &curve, double curve_low, double curve_high, bool curve_on_margin,       \
  CW_LOSS_FIELDS(CW_PARAMETER_NUMBER, CW_PARAMETER_OPTIONAL, CW_PARAMETER_FLAG, CW_PARAMETER_CHOICE)

// The Loss of an op with these parameters, `reduction` and `with_curve_gradient`, for so many rows, on the device and in
// the compute type of `like`.
#define CW_VALUE_OF(name) per_row(name##_rows, name, loss_rows, #name "_rows", loss_like),
#define CW_NUMBER_OF(name) name,
#define CW_OPTIONAL_OF(name) {name.has_value(), name.value_or(0)},
#define CW_FLAG_OF(name) name,
#define CW_QUOTED(name) #name,
#define CW_CHOICE_OF(name, list) index_of(name, {list(CW_QUOTED)}, #name),
#define CW_LOSS(rows, like)                                                                                        \
  [&](int64_t loss_rows, const Tensor& loss_like) -> Loss {                                                    \
    return {{CW_LOSS_FIELDS(CW_NUMBER_OF, CW_OPTIONAL_OF, CW_FLAG_OF, CW_CHOICE_OF) gradient_scale(reduction, loss_rows)}, \
            {CW_ROW_VALUES(CW_VALUE_OF)},                                                                          \
            curve_of(curve, curve_low, curve_high, curve_on_margin, with_curve_gradient, loss_rows, loss_like),    \
            with_curve_gradient && curve};                                                                         \
  }(rows, like)

// The gradient of a mean comes out divided by all rows, so that where all are live nothing is left to multiply.
inline double gradient_scale(std::string_view reduction, int64_t rows) {
  return reduction == "mean" && rows > 0 ? 1.0 / double(rows) : 1.0;
}

inline PerRow per_row(const OptionalTensor& rows, double value, int64_t count, const char* name, const Tensor& like) {
  if (!rows) return {MaybeTensor(), value};
  check_shape(*rows, {count}, name, like);
  check_type(*rows, compute_type(like), name);
  return {*rows, 0};
}

// A curve that is 0 is none: then the row takes the same way, to the same bits. On CUDA, asking would wait for the device.
inline CurveTensors curve_of(const OptionalTensor& log_weights, double low, double high, bool on_margin,
                             bool with_gradient, int64_t rows, const Tensor& like) {
  if (!log_weights) return {{}, low, high, on_margin};
  CW_CHECK_VALUE(log_weights->dim() == 2 && log_weights->size(1) >= 2 && log_weights->size(1) < (1 << 24),
                    "curve must be [B, K] with K from 2 to 2^24 - 1, got ", log_weights->sizes());
  check_shape(*log_weights, {rows, log_weights->size(1)}, "curve", like);
  check_type(*log_weights, compute_type(like), "curve");
  CW_CHECK_VALUE(low < high && std::isfinite(high - low), "curve_low must be below curve_high, got ", low, " and ", high);
  const Tensor values = with_contiguous_rows(*log_weights);
  const bool one_for_all = rows == 1 || (rows > 1 && values.stride(0) == 0);
  if (kCuda || with_gradient || !one_for_all) return {values, low, high, on_margin};
  const auto is_zero = [&](auto element) {
    const auto* const x = static_cast<const decltype(element)*>(values.const_data_ptr());
    return std::all_of(x, x + values.size(1), [](auto value) { return value == 0; });
  };
  const bool none = values.scalar_type() == kDouble ? is_zero(double{}) : is_zero(float{});
  return {none ? MaybeTensor() : MaybeTensor(values), low, high, on_margin};
}

inline Tensor log_weights(const OptionalTensor& log_q, int64_t rows, int64_t n, const Tensor& like) {
  if (!log_q) return {};
  check_shape(*log_q, {rows, n}, "log_q", like);
  check_type(*log_q, compute_type(like), "log_q");
  return with_contiguous_rows(*log_q);
}

// Without the gradient of log q, which few calls want.
inline RowOutputs allocate_rows(int64_t rows, const Loss& loss, const Options& options) {
  return {empty({rows}, options),
          empty({rows}, options.with(kBool)),
          loss.arguments.return_above ? MaybeTensor(empty({rows}, options.with(kLong))) : MaybeTensor(),
          MaybeTensor(),
          empty({kRowValues, rows}, options),
          loss.with_curve_gradient ? MaybeTensor(empty({rows, loss.curve.log_weights.size(1)}, options)) : MaybeTensor()};
}

struct Reduced {
  Tensor loss;   // [B], or one number
  Tensor rescale;  // of a mean: what is left to multiply the rows' gradients by, all rows over the live ones; else empty
};

// The mean runs over the live rows; the loss of the others is 0.
inline Reduced reduced(const RowOutputs& rows, std::string_view reduction) {
  const int kind = index_of(reduction, {"none", "sum", "mean"}, "reduction");
  const bool mean = kind == 2;
  const auto options = options_of(rows.loss);
  if (kind == 0) return {rows.loss, empty({0}, options)};
  const Reduced result{empty({}, options), mean ? empty({}, options) : empty({0}, options)};
  backend::reduce_rows(rows, mean, result.loss, result.rescale);
  return result;
}

}  // namespace cw_ext
