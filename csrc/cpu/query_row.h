// A row of embeddings, from its scores. Included by kernels_impl.h.
#pragma once

#include "gather.h"
#include "row_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

// The row's log weights, with −∞ where padding masks; in `room` [n] if they differ from those given.
// absent(j): whether negative j is padding.
template <typename T, typename Absent>
CW_INLINE const T* masked_log_q(bool any, const T* given, int64_t n, T* room, Absent absent) {
  if (!any) return given;
  for (int64_t j = 0; j < n; ++j) room[j] = absent(j) ? -infinity<T>() : (given ? given[j] : T(0));
  return room;
}

// A query divided by its norm (for dot: unchanged), in `unit` [dim]. Returns the factor.
template <typename In, typename T>
CW_INLINE T unit_query(const In* query, int64_t dim, bool normalized, T* unit) {
  const T inverse = normalized ? inverse_norm(squared_norm<In, T>(query, dim)) : T(1);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) unit[i] = load(query[i]) * inverse;
  return inverse;
}

// Row b from its scores, own_scores [1 + m] of the positives and neg_scores [n]; negatives and counts as in Row. Leaves
// dloss/dscore · scale of the former in own_coefficients and dloss/dscore of the latter in neg_coefficients.
template <typename In, typename T>
CW_INLINE RowResult<T> solve_row(const QueryTask<In>& task, RowKernel<T> kernel, Parameters<T>& p, int64_t b,
                                 const T* own_scores, const T* neg_scores, int64_t negatives,
                                 const typename Compute<In>::type* counts, const T* log_q, T* own_coefficients,
                                 T* neg_coefficients, T* scratch) {
  Row<T> row{own_scores[0], neg_scores, task.n, negatives, counts, own_scores + 1, task.m, log_q,
                   task.values.at(b), task.values.temperature.rows != nullptr,
                   &task.curve, task.curve.of_row(b), task.out.above ? task.out.above + b : nullptr};
  if (task.values.temperature.differs()) set_temperature(p, task.arguments, row.values.temperature);
  RowGradients<T> gradients;
  gradients.wanted = task.with_gradients;
  gradients.neg = neg_coefficients;
  gradients.extra = own_coefficients + 1;
  gradients.log_q = task.out.d_log_q ? task.out.d_log_q + b * task.n : nullptr;
  gradients.curve = task.out.d_curve ? task.out.d_curve + b * (task.curve.last + 1) : nullptr;
  const RowResult<T> result = kernel(row, p, gradients, scratch);
  write_row(task.out, b, result);
  if (!gradients.wanted) return result;
  own_coefficients[0] = gradients.pos;
  for (int64_t k = 0; k < 1 + task.m; ++k) own_coefficients[k] *= task.scale;
  return result;
}

}  // namespace CW_ISA
}  // namespace cw_cpu
