// The ops whose negatives nobody hands over: drawn, or the whole catalogue. What ops.cpp says of checks holds here.
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "negative_sampling.h"
#include "op_arguments.h"
#include "shared_negatives.h"

namespace cw_ext {

namespace {

#define CW_DRAWS_SCHEMA \
  CW_HISTORY_SCHEMA ", Tensor seed, SymInt first_row, int num_negatives, Tensor? thresholds, Tensor? aliases, " \
  "Tensor? cumulative, Tensor? known_shares, Tensor? log_weights, Tensor? candidates"
#define CW_DRAWS_PARAMETERS                                                                                  \
  CW_HISTORY_PARAMETERS, const at::Tensor &seed, int64_t first_row, int64_t num_negatives,                   \
      const OptionalTensor &thresholds, const OptionalTensor &aliases, const OptionalTensor &cumulative,     \
      const OptionalTensor &known_shares, const OptionalTensor &log_weights, const OptionalTensor &candidates
#define CW_DRAWS(num_items, rows, like)                                                                         \
  draws_of(history(query_ids, starts, known, rows, like), seed, first_row, num_items, rows, num_negatives, thresholds, \
           aliases, cumulative, known_shares, log_weights, candidates, like)

// Kernels read where these point. On CUDA they look at each id themselves.
void check_candidates(const at::Tensor& candidates, int64_t num_items) {
  if (on_cuda(candidates)) return;
  const int32_t* const ids = candidates.const_data_ptr<int32_t>();
  int32_t least = ids[0], most = ids[0];
  for (int64_t c = 1; c < candidates.size(0); ++c) {
    least = std::min(least, ids[c]);
    most = std::max(most, ids[c]);
  }
  TORCH_CHECK_INDEX(least >= 0 && most < num_items, "candidates must be in [0, ", num_items, "), got ",
                    least < 0 ? least : most);
}

Draws draws_of(const History& history, const at::Tensor& seed, int64_t first_row, int64_t num_items, int64_t rows,
               int64_t n, const OptionalTensor& thresholds, const OptionalTensor& aliases,
               const OptionalTensor& cumulative, const OptionalTensor& known_shares, const OptionalTensor& log_weights,
               const OptionalTensor& candidates, const at::Tensor& like) {
  TORCH_CHECK_VALUE(n > 0 && n <= std::numeric_limits<int32_t>::max(), "num_negatives must be in [1, 2^31), got ", n);
  TORCH_CHECK_VALUE(num_items > 0 && num_items <= std::numeric_limits<int32_t>::max(),
                    "negatives are drawn from 1 to 2^31 - 1 items, got ", num_items);
  check_shape(seed, {}, "seed", like);
  check_type(seed, at::kLong, "seed");
  TORCH_CHECK_VALUE(first_row >= 0 && first_row <= std::numeric_limits<int64_t>::max() - rows,
                    "first_row must be at least 0, and the last row below 2^63, got ", first_row);
  Draws draws{seed, first_row, history, num_items, n, {}, {}, {}, {}, {}, {}, {}};
  if (candidates) {
    TORCH_CHECK_VALUE(candidates->dim() == 1 && candidates->size(0) > 0, "candidates must be [C], got ",
                      candidates->sizes());
    check_shape(*candidates, {candidates->size(0)}, "candidates", like);
    check_type(*candidates, at::kInt, "candidates");
    draws.candidates = candidates->contiguous();
    draws.num_drawable = candidates->size(0);
    check_candidates(draws.candidates, num_items);
  }
  TORCH_CHECK_VALUE(thresholds.has_value() == aliases.has_value() && cumulative.has_value() == aliases.has_value(),
                    "thresholds, aliases and cumulative go together");
  if (thresholds) {
    const int64_t drawable = draws.num_drawable;
    check_shape(*thresholds, {drawable}, "thresholds", like);
    check_type(*thresholds, at::kUInt32, "thresholds");
    check_shape(*aliases, {drawable}, "aliases", like);
    check_type(*aliases, at::kInt, "aliases");
    check_shape(*cumulative, {drawable}, "cumulative", like);
    check_type(*cumulative, at::kLong, "cumulative");
    draws.thresholds = thresholds->contiguous();
    draws.aliases = aliases->contiguous();
    draws.cumulative = cumulative->contiguous();
    if (known_shares && history.known.defined()) {
      check_shape(*known_shares, {history.known.size(0) + 1}, "known_shares", like);
      check_type(*known_shares, at::kLong, "known_shares");
      draws.known_shares = known_shares->contiguous();
    }
  }
  if (log_weights) {
    check_shape(*log_weights, {num_items}, "log_weights", like);
    draws.log_weights = log_weights->contiguous();
  }
  return draws;
}

at::Tensor draw_negatives(int64_t rows, int64_t num_items, CW_DRAWS_PARAMETERS) {
  const Draws draws = CW_DRAWS(num_items, rows, seed);
  const at::Tensor out = empty_large({rows, num_negatives}, seed.options().dtype(at::kInt));
  if (rows == 0) return out;
#ifdef CW_WITH_CUDA
  if (on_cuda(seed)) {
    cw_cuda::draw(draws, out);
    return out;
  }
#endif
  cw_cpu::draw(draws, out);
  return out;
}

// One row of words per counter: to see that the generator is Philox.
at::Tensor philox_words(const at::Tensor& counters, int64_t key) {
  TORCH_CHECK_VALUE(counters.dim() == 2 && counters.size(1) == 4, "counters must be [R, 4], got ", counters.sizes());
  check_type(counters, at::kLong, "counters");
  const at::Tensor from = counters.contiguous(), out = at::empty_like(from);
  const int64_t* const c = from.const_data_ptr<int64_t>();
  int64_t* const to = out.mutable_data_ptr<int64_t>();
  for (int64_t r = 0; r < from.size(0); ++r) {
    const auto words = cw::philox<uint32_t>(uint32_t(c[4 * r]), uint32_t(c[4 * r + 1]), uint32_t(c[4 * r + 2]),
                                            uint32_t(c[4 * r + 3]), uint64_t(key));
    for (int k = 0; k < 4; ++k) to[4 * r + k] = words.x[k];
  }
  return out;
}

struct Batch {
  int64_t rows;
  int64_t dim;
  int64_t m;
  at::Tensor pos_ids;    // [B] int64
  at::Tensor extra_ids;  // [B, M] int64
};

Batch check_batch(const at::Tensor& queries, const at::Tensor& items, const at::Tensor& pos_ids,
                  const OptionalTensor& extra_ids) {
  TORCH_CHECK_VALUE(queries.dim() == 2 && items.dim() == 2 && queries.size(1) > 0,
                    "queries must be [B, D] and items [I, D], got ", queries.sizes(), " and ", items.sizes());
  const int64_t rows = queries.size(0);
  check_shape(items, {items.size(0), queries.size(1)}, "items", queries);
  check_type(items, queries.scalar_type(), "items");
  TORCH_CHECK_VALUE(items.size(0) > 0, "items must have at least one row, got ", items.sizes());
  TORCH_CHECK_TYPE(is_id_type(pos_ids) && (!extra_ids || is_id_type(*extra_ids)), "ids must be int32 or int64");
  check_shape(pos_ids, {rows}, "pos_ids", queries);
  Batch batch{rows, queries.size(1), 0, pos_ids.to(at::kLong).contiguous(), {}};
  if (extra_ids) {
    TORCH_CHECK_VALUE(extra_ids->dim() == 2, "extra_ids must be [B, M], got ", extra_ids->sizes());
    check_shape(*extra_ids, {rows, extra_ids->size(1)}, "extra_ids", queries);
    batch.extra_ids = extra_ids->to(at::kLong).contiguous();
    batch.m = extra_ids->size(1);
  } else {
    batch.extra_ids = at::empty({rows, 0}, batch.pos_ids.options());
  }
  return batch;
}

// What an EmbeddingsCall and a SharedNegativesCall have in common.
#define CW_FILL_CALL(call, batch)                                                          \
  do {                                                                                     \
    const int64_t rows = (batch).rows;                                                     \
    (call).arguments = CW_LOSS_ARGUMENTS;                                                  \
    (call).queries = queries.contiguous();                                                 \
    (call).items = items.contiguous();                                                     \
    (call).pos_ids = (batch).pos_ids;                                                      \
    (call).extra_ids = (batch).extra_ids;                                                  \
    (call).prior = per_row(prior_rows, prior, rows, "prior_rows", queries);                \
    (call).threshold = per_row(threshold_rows, threshold, rows, "threshold_rows", queries); \
    (call).scale = similarity_of(similarity).scale;                                        \
    (call).normalized = similarity_of(similarity).normalized;                              \
    (call).out = allocate_rows(rows, 0, false, options);                                   \
  } while (false)

using SampledResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

SampledResult sampled_forward(const at::Tensor& queries, const at::Tensor& items, const at::Tensor& pos_ids,
                              const OptionalTensor& extra_ids, CW_DRAWS_PARAMETERS, CW_LOSS_PARAMETERS,
                              c10::string_view similarity, c10::string_view reduction, bool with_gradients,
                              bool keep_coefficients) {
  const Batch batch = check_batch(queries, items, pos_ids, extra_ids);
  const auto options = queries.options().dtype(compute_type(queries));
  SampledCall call;
  call.draws = CW_DRAWS(items.size(0), batch.rows, queries);
  call.draws.pos_ids = batch.pos_ids;
  if (call.draws.log_weights.defined()) check_type(call.draws.log_weights, compute_type(queries), "log_weights");
  CW_FILL_CALL(call.rows, batch);
  call.rows.with_gradients = with_gradients;
  if (with_gradients) {
    call.rows.d_queries = at::empty({batch.rows, batch.dim}, options);
    call.rows.unit_queries = at::empty({batch.rows, batch.dim}, options);
    if (keep_coefficients) call.rows.coefficients = empty_large({batch.rows, 1 + batch.m + num_negatives}, options);
  }
  if (batch.rows > 0) {
#ifdef CW_WITH_CUDA
    if (on_cuda(queries)) {
      cw_cuda::sampled(call);
    } else
#endif
      cw_cpu::sampled(call);
  }
  const auto [loss, rescale] = reduced(call.rows.out, reduction);
  return {loss,
          call.rows.out.live,
          rescale,
          or_empty(call.rows.d_queries, options),
          or_empty(call.rows.unit_queries, options),
          or_empty(call.rows.coefficients, options),
          call.rows.out.d_prior,
          call.rows.out.d_threshold};
}

at::Tensor sampled_item_gradient(const at::Tensor& unit_queries, const OptionalTensor& factor,
                                 const OptionalTensor& coefficients, const at::Tensor& queries, const at::Tensor& items,
                                 const at::Tensor& pos_ids, const OptionalTensor& extra_ids, CW_DRAWS_PARAMETERS,
                                 CW_LOSS_PARAMETERS, c10::string_view similarity, c10::string_view reduction) {
  const Batch batch = check_batch(queries, items, pos_ids, extra_ids);
  const auto options = queries.options().dtype(compute_type(queries));
  check_shape(unit_queries, {batch.rows, batch.dim}, "unit_queries", queries);
  check_type(unit_queries, compute_type(queries), "unit_queries");
  SampledItemGradientCall call;
  call.draws = CW_DRAWS(items.size(0), batch.rows, queries);
  call.draws.pos_ids = batch.pos_ids;
  if (call.draws.log_weights.defined()) check_type(call.draws.log_weights, compute_type(queries), "log_weights");
  ItemGradientCall& gradient = call.gradient;
  gradient.sources =
      factor ? unit_queries * (factor->dim() == 0 ? *factor : factor->unsqueeze(-1)) : unit_queries.contiguous();
  gradient.items = items.contiguous();
  gradient.pos_ids = batch.pos_ids;
  gradient.extra_ids = batch.extra_ids;
  gradient.scale = similarity_of(similarity).scale;
  gradient.normalized = similarity_of(similarity).normalized;
  gradient.sums = ItemSums::chosen;
  if (coefficients) {
    check_shape(*coefficients, {batch.rows, 1 + batch.m + num_negatives}, "coefficients", queries);
    check_type(*coefficients, compute_type(queries), "coefficients");
    gradient.coefficients = coefficients->contiguous();
  } else {
    CW_FILL_CALL(call.rows, batch);
    call.rows.with_gradients = true;
  }
  if (batch.rows == 0) return at::zeros_like(gradient.items);
  gradient.gradient = empty_large(gradient.items.sizes(), gradient.items.options());
#ifdef CW_WITH_CUDA
  if (on_cuda(queries)) {
    cw_cuda::sampled_item_gradient(call);
    return gradient.gradient;
  }
#endif
  cw_cpu::sampled_item_gradient(call);
  return gradient.gradient;
}

using FullResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// All items as negatives, a part of the rows at a time. The gradients are those of the rows' losses times `factor`.
FullResult full_forward(const at::Tensor& queries, const at::Tensor& items, const at::Tensor& pos_ids,
                        const OptionalTensor& extra_ids, CW_HISTORY_PARAMETERS, CW_LOSS_PARAMETERS,
                        c10::string_view similarity, c10::string_view reduction, bool with_gradients,
                        const OptionalTensor& factor) {
  const Batch batch = check_batch(queries, items, pos_ids, extra_ids);
  const auto options = queries.options().dtype(compute_type(queries));
  SharedNegativesCall call;
  CW_FILL_CALL(call, batch);
  call.neg_ids = at::arange(items.size(0), batch.pos_ids.options());
  call.exclusion = {call.neg_ids.to(at::kInt), at::full({items.size(0)}, -1, call.neg_ids.options().dtype(at::kInt)),
                    history(query_ids, starts, known, batch.rows, queries)};
  call.with_gradients = with_gradients;
  at::Tensor d_items;
  if (with_gradients) {
    call.d_queries = at::empty({batch.rows, batch.dim}, options);
    call.unit_queries = at::empty({batch.rows, batch.dim}, options);
    call.coefficients = at::empty({batch.rows, 1 + batch.m}, options);
    call.negative_sums = at::zeros({items.size(0), batch.dim}, options);
    if (factor) {
      check_shape(*factor, {batch.rows}, "factor", queries);
      check_type(*factor, compute_type(queries), "factor");
      call.row_factor = factor->contiguous();
    }
    d_items = empty_large(call.items.sizes(), call.items.options());
  }
  if (batch.rows > 0) {
    check_range(batch.pos_ids, items.size(0), "pos_ids");
    check_range(batch.extra_ids, items.size(0), "extra_pos_ids");
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    run_shared_negatives(call);
    if (with_gradients) {
      if (factor) call.d_queries.mul_(factor->unsqueeze(-1));
      ItemGradientCall gradient;
      gradient.sources = factor ? call.unit_queries * factor->unsqueeze(-1) : call.unit_queries;
      gradient.coefficients = call.coefficients;
      gradient.initial = call.negative_sums;
      gradient.items = call.items;
      gradient.pos_ids = batch.pos_ids;
      gradient.extra_ids = batch.extra_ids;
      gradient.scale = call.scale;
      gradient.normalized = call.normalized;
      gradient.sums = ItemSums::chosen;
      gradient.gradient = d_items;
      run_item_gradient(gradient);
    }
  } else if (with_gradients) {
    d_items.zero_();
  }
  const auto [loss, rescale] = reduced(call.out, reduction);
  return {loss,
          call.out.live,
          rescale,
          or_empty(call.d_queries, options),
          or_empty(d_items, items.options()),
          call.out.d_prior,
          call.out.d_threshold};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(cw_ext, m) {
  // The negatives of rows first_row, first_row + 1, …, on the device of the seed: int32 [rows, num_negatives].
  m.def("draw_negatives(int rows, int num_items, " CW_DRAWS_SCHEMA ") -> Tensor");
  m.def("philox_words(Tensor counters, int key) -> Tensor");
  // Level 3: queries [B, D], items [I, D], pos_ids [B], extra_ids [B, M].
  m.def("sampled_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_DRAWS_SCHEMA ", "
        CW_LOSS_SCHEMA ", str similarity, str reduction, bool with_gradients, bool keep_coefficients) -> (Tensor loss, "
        "Tensor live, Tensor rescale, Tensor d_queries, Tensor unit_queries, Tensor coefficients, Tensor d_prior, "
        "Tensor d_threshold)");
  // coefficients: as sampled_forward left them, or None to compute them again.
  m.def("sampled_item_gradient(Tensor unit_queries, Tensor? factor, Tensor? coefficients, Tensor queries, Tensor items, "
        "Tensor pos_ids, Tensor? extra_ids, " CW_DRAWS_SCHEMA ", " CW_LOSS_SCHEMA ", str similarity, str reduction) "
        "-> Tensor");
  m.def("full_forward(Tensor queries, Tensor items, Tensor pos_ids, Tensor? extra_ids, " CW_HISTORY_SCHEMA ", "
        CW_LOSS_SCHEMA ", str similarity, str reduction, bool with_gradients, Tensor? factor) -> (Tensor loss, "
        "Tensor live, Tensor rescale, Tensor d_queries, Tensor d_items, Tensor d_prior, Tensor d_threshold)");
}

TORCH_LIBRARY_IMPL(cw_ext, CPU, m) {
  m.impl("draw_negatives", &draw_negatives);
  m.impl("philox_words", &philox_words);
  m.impl("sampled_forward", &sampled_forward);
  m.impl("sampled_item_gradient", &sampled_item_gradient);
  m.impl("full_forward", &full_forward);
}

#ifdef CW_WITH_CUDA
TORCH_LIBRARY_IMPL(cw_ext, CUDA, m) {
  m.impl("draw_negatives", &draw_negatives);
  m.impl("sampled_forward", &sampled_forward);
  m.impl("sampled_item_gradient", &sampled_item_gradient);
  m.impl("full_forward", &full_forward);
}
#endif

}  // namespace cw_ext
