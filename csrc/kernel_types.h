// What the kernels' interfaces share, CPU and CUDA: plain types, no torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CW_INLINE __host__ __device__ __forceinline__
#else
#define CW_INLINE inline __attribute__((always_inline))
#endif

// The headers of mathematics are included by one translation unit per instruction set, each under a namespace of its own.
#ifndef CW_NAMESPACE
#define CW_NAMESPACE cw
#endif

namespace cw_ext {

// The arguments of the loss as the user gave them; cw_row.h's make_parameters() takes them.
struct LossArguments {
  double temperature;
  int weighting;  // cw_row.h's Weighting
  double weight_temperature;
  bool detach_weights;
  bool normalize_weights;
  double floor;
  bool has_min_margin;
  double min_margin;
  bool has_confidence;
  double confidence_temperature;
  bool include_positive;
  int surrogate;  // cw_row.h's Surrogate
  double gradient_scale;  // multiplies the gradients of every row, but not its loss
};

// What a row is computed in.
template <typename In>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// A quantity per row: one value for all (rows == nullptr), or rows[b·stride].
template <typename T>
struct RowValue {
  const T* rows;
  int64_t stride;
  T value;
};

// π, and 1 − π. The latter of a float comes from the double that was given: fp32 has no number between 1 − 2^-24 and 1.
template <typename T>
struct Prior {
  T value;
  T rest;
};

// One for all (rows == nullptr), or of rows[b·stride].
template <typename T>
struct RowPrior {
  const T* rows;
  int64_t stride;
  Prior<T> all;

  CW_INLINE Prior<T> at(int64_t row) const {
    return rows ? Prior<T>{rows[row * stride], T(1) - rows[row * stride]} : all;
  }
};

template <typename T>
inline RowPrior<T> row_prior(const RowValue<T>& x, double all) {
  return {x.rows, x.stride, {x.value, T(1 - all)}};
}

// Where the rows' results go. A null pointer is a result that nobody wants.
template <typename T>
struct RowResults {
  T* loss;         // [B]
  bool* live;      // [B]
  T* d_log_q;      // [B, N]
  T* d_prior;      // [B]
  T* d_threshold;  // [B]
};

}  // namespace cw_ext
