// The loss's arguments in the ops: schema, parameters and checks, from the lists in loss_fields.h; and what every forward
// op returns of its rows.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "calls.h"
#include "checks.h"

namespace cw_ext {

// Each ends with a comma: other arguments follow. What is the same for all rows comes as one list of numbers, in the order of
// loss_fields.h: torch takes as long for each argument of an op as for ten numbers of a list, and for thirty of them as long as
// the kernel for a small batch. An optional number that is not given is NaN, a flag 0 or 1, a choice its place in its list.
#define CW_SCHEMA_VALUE(name) "Tensor? " #name "_rows, "
#define CW_LOSS_SCHEMA CW_ROW_VALUES(CW_SCHEMA_VALUE) "Tensor? curve, float[] numbers, "

#define CW_PARAMETER_VALUE(name) const OptionalTensor &name##_rows,
#define CW_LOSS_PARAMETERS \
  CW_ROW_VALUES(CW_PARAMETER_VALUE) const OptionalTensor &curve, const std::vector<double> &numbers,

// The Loss of an op with these parameters, `reduction` and `with_curve_gradient`, for so many rows, on the device and in
// the compute type of `like`.
#define CW_ROWS_OF(name) name##_rows,
#define CW_LOSS(rows, like) \
  loss_of({CW_ROW_VALUES(CW_ROWS_OF)}, curve, numbers, reduction, with_curve_gradient, rows, like)

// Takes the numbers one after another.
class Numbers {
 public:
  explicit Numbers(const std::vector<double>& all) : next_(all.data()) {
#define CW_COUNT(...) +1
    constexpr size_t kCurve = 3;
    constexpr size_t count = kRowValues + kCurve CW_LOSS_FIELDS(CW_COUNT, CW_COUNT, CW_COUNT, CW_COUNT);
#undef CW_COUNT
    CW_CHECK_VALUE(all.size() == count, "numbers must have ", count, " elements, got ", all.size());
  }

  double number() { return *next_++; }
  bool flag() { return number() != 0; }

  Optional optional() {
    const double value = number();
    return std::isnan(value) ? Optional{false, 0} : Optional{true, value};
  }

  int choice(int count, const char* name) {
    const double value = number();
    CW_CHECK_VALUE(value >= 0 && value < count, name, " must be in [0, ", count, "), got ", value);
    return int(value);
  }

 private:
  const double* next_;
};

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

inline Loss loss_of(const std::array<OptionalTensor, kRowValues>& rows_of_values, const OptionalTensor& curve,
                    const std::vector<double>& numbers, std::string_view reduction, bool with_curve_gradient,
                    int64_t rows, const Tensor& like) {
  Numbers next(numbers);
  Loss loss;
  auto own = rows_of_values.begin();
#define CW_VALUE_OF(name) loss.values.name = per_row(*own++, next.number(), rows, #name "_rows", like);
  CW_ROW_VALUES(CW_VALUE_OF)
#undef CW_VALUE_OF
  const double low = next.number(), high = next.number();
  loss.curve = curve_of(curve, low, high, next.flag(), with_curve_gradient, rows, like);
  loss.with_curve_gradient = with_curve_gradient && curve;
#define CW_PLACE(name) +1
#define CW_NUMBER(name) loss.arguments.name = next.number();
#define CW_OPTIONAL(name) loss.arguments.name = next.optional();
#define CW_FLAG(name) loss.arguments.name = next.flag();
#define CW_CHOICE(name, list) loss.arguments.name = next.choice(list(CW_PLACE), #name);
  CW_LOSS_FIELDS(CW_NUMBER, CW_OPTIONAL, CW_FLAG, CW_CHOICE)
#undef CW_NUMBER
#undef CW_OPTIONAL
#undef CW_FLAG
#undef CW_CHOICE
#undef CW_PLACE
  loss.arguments.gradient_scale = gradient_scale(reduction, rows);
  return loss;
}

inline Tensor log_weights(const OptionalTensor& log_q, int64_t rows, int64_t n, const Tensor& like) {
  if (!log_q) return {};
  check_shape(*log_q, {rows, n}, "log_q", like);
  check_type(*log_q, compute_type(like), "log_q");
  return with_contiguous_rows(*log_q);
}

// Whether some row value is a tensor.
inline bool has_own_values(const Loss& loss) {
#define CW_VALUE(name) || loss.values.name.rows.defined()
  return false CW_ROW_VALUES(CW_VALUE);
#undef CW_VALUE
}

// Without the gradient of log q, which few calls want.
inline RowOutputs allocate_rows(int64_t rows, const Loss& loss, const Options& options, bool with_value_gradients = true) {
  return {empty({rows}, options),
          empty({rows}, options.with(kBool)),
          loss.arguments.return_above ? MaybeTensor(empty({rows}, options.with(kLong))) : MaybeTensor(),
          MaybeTensor(),
          with_value_gradients ? MaybeTensor(empty({kRowValues, rows}, options)) : MaybeTensor(),
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
