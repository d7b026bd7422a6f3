// From scores: the loss, and the gradient of each.
#include <tuple>

#include "loss_arguments.h"

namespace cw_ext {

namespace {

using ScoresResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
               Tensor, Tensor>;

ScoresResult scores_forward(const Tensor& pos, const Tensor& neg, const OptionalTensor& extra,
                            const OptionalTensor& log_q, CW_LOSS_PARAMETERS const Text& reduction,
                            bool with_gradients, bool with_log_q_gradient, bool with_curve_gradient) {
  CW_CHECK_VALUE(pos.dim() == 1 && neg.dim() == 2, "pos must be [B] and neg [B, N], got ", pos.sizes(), " and ",
                    neg.sizes());
  const int64_t rows = pos.size(0), n = neg.size(1);
  CW_CHECK_VALUE(n > 0, "neg must hold at least one negative per row, got ", neg.sizes());
  check_shape(neg, {rows, n}, "neg", pos);
  check_type(neg, pos.scalar_type(), "neg");
  const int64_t m = extra && extra->dim() == 2 ? extra->size(1) : 0;
  if (extra) {
    check_shape(*extra, {rows, m}, "extra", pos);
    check_type(*extra, pos.scalar_type(), "extra");
  }
  const auto options = options_of(pos, compute_type(pos));

  ScoresCall call;
  call.loss = CW_LOSS(rows, pos);
  call.pos = pos;
  call.neg = with_contiguous_rows(neg);
  if (extra) call.extra = with_contiguous_rows(*extra);
  call.log_q = log_weights(log_q, rows, n, pos);
  call.with_gradients = with_gradients;
  call.out = allocate_rows(rows, call.loss, options, with_gradients && has_own_values(call.loss));
  if (with_log_q_gradient && log_q) call.out.d_log_q = empty({rows, n}, options);
  if (with_gradients) {
    call.d_pos = empty({rows}, options);
    call.d_neg = empty_large({rows, n}, kept_options(pos));
    if (extra) call.d_extra = empty({rows, m}, options);
  }
  if (rows > 0) backend::scores(call);
  const auto [loss, rescale] = reduced(call.out, reduction);
  return {loss,
          call.out.live,
          call.out.above,
          rescale,
          call.d_pos,
          call.d_neg,
          call.d_extra,
          call.out.d_log_q,
          call.out.d_values,
          call.out.d_curve};
}

}  // namespace

CW_OPS(
  // pos [B], neg [B, N], extra [B, M], log_q [B, N]. Results that are not wanted are None: making a tensor takes longer than a row.
  m.def("scores_forward(Tensor pos, Tensor neg, Tensor? extra, Tensor? log_q, " CW_LOSS_SCHEMA
        "str reduction, bool with_gradients, bool with_log_q_gradient, bool with_curve_gradient) -> (Tensor loss, "
        "Tensor live, Tensor above, Tensor rescale, "
        "Tensor d_pos, Tensor d_neg, Tensor d_extra, Tensor d_log_q, Tensor d_row_values, Tensor d_curve)");)

CW_KERNELS(m.impl("scores_forward", TORCH_BOX(&scores_forward));)

}  // namespace cw_ext
