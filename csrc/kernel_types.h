// What the kernels' interfaces share, CPU and CUDA: plain types, no torch.
#pragma once

#include <cstdint>

#include "loss_fields.h"

#if defined(__CUDACC__)
#define CW_INLINE __host__ __device__ __forceinline__
#else
#define CW_INLINE inline __attribute__((always_inline))
#endif

// The headers with the mathematics are included by one translation unit per instruction set, each in its own namespace.
#ifndef CW_NAMESPACE
#define CW_NAMESPACE cw
#endif

namespace cw_ext {

struct Optional {
  bool given;
  double value;
};

// The user's arguments for all rows, as cw_row.h's make_parameters() takes them. A choice is an index into its list.
struct LossArguments {
#define CW_NUMBER(name) double name;
#define CW_OPTIONAL(name) Optional name;
#define CW_FLAG(name) bool name;
#define CW_CHOICE(name, list) int name;
  CW_LOSS_FIELDS(CW_NUMBER, CW_OPTIONAL, CW_FLAG, CW_CHOICE)
#undef CW_NUMBER
#undef CW_OPTIONAL
#undef CW_FLAG
#undef CW_CHOICE
  double gradient_scale;  // multiplies the gradients of every row, but not its loss
};

// The type in which a row is computed.
template <typename In>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// A value per row: rows[b·stride], or `all` where rows is null. In fp64, since a prior may lie between 1 − 2^-24 and 1, where
// fp32 has no number.
template <typename T>
struct RowValue {
  const T* rows;
  int64_t stride;
  double all;

  CW_INLINE double at(int64_t row) const { return rows ? double(rows[row * stride]) : all; }
  CW_INLINE bool differs() const { return rows && stride != 0; }  // from row to row
};

// The values of one row.
struct RowArguments {
#define CW_VALUE(name) double name;
  CW_ROW_VALUES(CW_VALUE)
#undef CW_VALUE
};

// The values of all rows.
template <typename T>
struct RowInputs {
#define CW_VALUE(name) RowValue<T> name;
  CW_ROW_VALUES(CW_VALUE)
#undef CW_VALUE

  CW_INLINE RowArguments at(int64_t row) const {
#define CW_VALUE(name) name.at(row),
    return {CW_ROW_VALUES(CW_VALUE)};
#undef CW_VALUE
  }
};

#define CW_VALUE(name) +1
constexpr int kRowValues = CW_ROW_VALUES(CW_VALUE);
#undef CW_VALUE

// Their places in the list.
#define CW_VALUE(name) name,
enum class RowValuePlace : int { CW_ROW_VALUES(CW_VALUE) };
#undef CW_VALUE

// Log weights as a piecewise linear function of the score, or of its margin over the positive's: log_weights[k] at K
// equally spaced places from low to high, the end values beyond them. Null log_weights: no curve.
template <typename T>
struct Curve {
  const T* log_weights;  // [B, K]
  int64_t stride;        // of the rows: 0 where all have the same
  int32_t last;          // K − 1
  bool on_margin;
  T low;
  T high;
  T places_per_unit;  // (K − 1) / (high − low)

  CW_INLINE const T* of_row(int64_t row) const { return log_weights ? log_weights + row * stride : nullptr; }
};

template <typename T>
inline Curve<T> make_curve(const T* log_weights, int64_t stride, int64_t knots, double low, double high,
                           bool on_margin) {
  return {log_weights, stride, int32_t(knots - 1), on_margin, T(low), T(high), T(double(knots - 1) / (high - low))};
}

// Where the rows' results go. A null pointer is a result that is not wanted.
template <typename T>
struct RowResults {
  T* loss;         // [B]
  bool* live;      // [B]
  T* d_log_q;      // [B, N]
  T* d_values;     // [kRowValues, B]: the gradients of the row values, in the order of their list
  int64_t d_values_stride;
  T* d_curve;      // [B, K]
  int64_t* above;  // [B]: how many negatives that are not masked out score above the threshold
};

}  // namespace cw_ext
