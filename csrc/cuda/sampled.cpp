// Sampled: the embeddings kernels on negatives that are drawn first, a bounded part of the batch at a time, and drawn
// again where they are needed again.

#include <algorithm>

#include "item_sums.h"
#include "tensors.h"

namespace cw_cuda {

using cw_ext::Draws;
using cw_ext::EmbeddingsCall;
using cw_ext::ItemGradientCall;
using cw_ext::SampledCall;
using cw_ext::SampledItemGradientCall;

namespace {

// Pairs handled at a time.
#ifdef CW_CUDA_EMULATION  // so few that tests come to several parts
constexpr int64_t kPartPairs = int64_t(1) << 10;
#else
constexpr int64_t kPartPairs = int64_t(1) << 22;
#endif

// Calls body(begin, count) for parts of the rows, each of `width` pairs.
template <typename Body>
void in_parts(int64_t rows, int64_t width, Body&& body) {
  const int64_t step = std::max<int64_t>(1, kPartPairs / width);
  for (int64_t begin = 0; begin < rows; begin += step) body(begin, std::min(step, rows - begin));
}

// The negatives of the rows from `first_row` on to ids [rows, N]; to log_q, unless it is undefined, their log weights.
void draw_rows(const Draws& draws, int64_t first_row, const Tensor& ids, const Tensor& log_q) {
  NegativeSource source = source_of(draws.history);
  source.seed = input<int64_t>(draws.seed);
  source.row_offset = draws.first_row;
  source.pos_ids = input<int64_t>(draws.pos_ids);
  source.num_items = uint32_t(draws.num_drawable);
  source.thresholds = input<uint32_t>(draws.thresholds);
  source.aliases = input<int32_t>(draws.aliases);
  source.cumulative = input<int64_t>(draws.cumulative);
  source.known_shares = input<int64_t>(draws.known_shares);
  source.candidates = input<int32_t>(draws.candidates);
  with_compute_type(log_q.defined() ? log_q.scalar_type() : kFloat, [&](auto element) {
    using T = decltype(element);
    const DrawTask<T> task{source,
                           num_known(draws.history),
                           first_row,
                           ids.size(0),
                           ids.size(1),
                           output<int32_t>(ids),
                           log_q.defined() ? input<T>(draws.log_weights) : nullptr,
                           output<T>(log_q)};
    STD_CUDA_CHECK(launch_draw(task, current_stream(ids)));
  });
}

// The rows [begin, begin + count) of a sampled call as an embeddings call. Results that are not kept get
// memory of their own.
EmbeddingsCall drawn_part(const EmbeddingsCall& rows, const Draws& draws, int64_t begin, int64_t count) {
  EmbeddingsCall part = rows;
  for (MaybeTensor EmbeddingsCall::*const field :
       {&EmbeddingsCall::queries, &EmbeddingsCall::pos_ids, &EmbeddingsCall::extra_ids, &EmbeddingsCall::d_queries,
        &EmbeddingsCall::unit_queries, &EmbeddingsCall::coefficients}) {
    part.*field = narrowed(rows.*field, begin, count);
  }
  part.loss = narrowed(rows.loss, begin, count);
  part.out = narrowed(rows.out, begin, count);
  const auto options = options_of(rows.out.loss);
  part.neg_ids = empty({count, draws.n}, options.with(kInt));
  if (draws.log_weights.defined()) part.log_q = empty({count, draws.n}, options);
  draw_rows(draws, begin, part.neg_ids, part.log_q);
  if (!rows.with_gradients) return part;
  const int64_t width = 1 + rows.extra_ids.size(1) + draws.n;
  if (!part.coefficients.defined()) part.coefficients = empty({count, width}, options);
  if (!part.d_queries.defined()) part.d_queries = empty(part.queries.sizes(), options);
  if (!part.unit_queries.defined()) part.unit_queries = empty(part.queries.sizes(), options);
  return part;
}

}  // namespace

void draw(const Draws& draws, const Tensor& out) {
  const DeviceGuard guard(out);
  draw_rows(draws, 0, out, MaybeTensor());
}

void sampled(const SampledCall& call) {
  const DeviceGuard guard(call.rows.queries);
  const int64_t width = 1 + call.rows.extra_ids.size(1) + call.draws.n;
  in_parts(call.rows.queries.size(0), width, [&](int64_t begin, int64_t count) {
    embeddings(drawn_part(call.rows, call.draws, begin, count));
  });
}

void sampled_item_gradient(const SampledItemGradientCall& call) {
  const ItemGradientCall& gradient = call.gradient;
  if (gradient.gradient.numel() == 0) return;
  const DeviceGuard guard(gradient.items);
  const int64_t rows = gradient.sources.size(0), width = 1 + gradient.extra_ids.size(1) + call.draws.n;
  ItemTotals totals = begin_totals(gradient, rows * width);
  in_parts(rows, width, [&](int64_t begin, int64_t count) {
    ItemGradientCall part = gradient;
    part.sources = narrowed(gradient.sources, begin, count);
    part.pos_ids = narrowed(gradient.pos_ids, begin, count);
    part.extra_ids = narrowed(gradient.extra_ids, begin, count);
    if (gradient.coefficients.defined()) {
      part.coefficients = narrowed(gradient.coefficients, begin, count);
      part.neg_ids = empty({count, call.draws.n}, options_of(gradient.pos_ids, kInt));
      draw_rows(call.draws, begin, part.neg_ids, MaybeTensor());
    } else {
      const EmbeddingsCall again = drawn_part(call.rows, call.draws, begin, count);
      embeddings(again);
      part.coefficients = again.coefficients;
      part.neg_ids = again.neg_ids;
    }
    add_pairs(part, totals);
  });
  finish_totals(gradient, totals);
}

}  // namespace cw_cuda
