// From scores. Included by kernels_impl.h.
#pragma once

#include "dtypes.h"
#include "row_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

// scratch: scores_scratch(n, m).
template <typename In>
void scores(const ScoresTask<In>& task, int64_t begin, int64_t end, typename Compute<In>::type* scratch) {
  using T = typename Compute<In>::type;
  Parameters<T> p = make_parameters<T>(task.arguments, task.values.temperature.at(begin));
  const RowKernel<T> kernel = choose_row_kernel(p);
  const int64_t width = task.n + task.m;
  T* const converted = scratch;             // [n + m], scores that come in another type
  T* const own_terms = converted + width;   // [n + m], where no gradients are wanted
  T* const row_room = own_terms + width;    // row_scratch(n)
  const bool own_temperature = task.values.temperature.rows != nullptr;
  for (int64_t b = begin; b < end; ++b) {
    Row<T> row;
    row.pos = load(task.pos[b * task.pos_stride]);
    row.neg = in_compute_type(task.neg + b * task.neg_stride, task.n, converted);
    row.n = task.n;
    row.negatives = task.n;
    row.counts = nullptr;
    row.extra = in_compute_type(task.extra + b * task.extra_stride, task.m, converted + task.n);
    row.m = task.m;
    row.log_q = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;
    row.values = task.values.at(b);
    row.own_temperature = own_temperature;
    row.curve = &task.curve;
    row.curve_values = task.curve.of_row(b);
    row.above = task.out.above ? task.out.above + b : nullptr;
    RowGradients<T> gradients;
    gradients.wanted = task.d_pos != nullptr;
    gradients.neg = gradients.wanted ? task.d_neg + b * task.n : own_terms;
    gradients.extra = gradients.wanted ? task.d_extra + b * task.m : own_terms + task.n;
    gradients.log_q = task.out.d_log_q ? task.out.d_log_q + b * task.n : nullptr;
    gradients.curve = task.out.d_curve ? task.out.d_curve + b * (task.curve.last + 1) : nullptr;
    if (task.values.temperature.differs()) set_temperature(p, task.arguments, row.values.temperature);
    const RowResult<T> result = kernel(row, p, gradients, row_room);
    write_row(task.out, b, result);
    if (gradients.wanted) task.d_pos[b] = gradients.pos;
  }
}

template <typename In>
void scale_rows(const ScaleRowsTask<In>& task, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const auto* const x = task.x + b * task.width;
    const auto factor = task.factor[b];
    In* const out = task.out + b * task.width;
#pragma omp simd
    for (int64_t j = 0; j < task.width; ++j) store(x[j] * factor, out[j]);
  }
}

}  // namespace CW_ISA
}  // namespace cw_cpu
