// From embeddings, all rows sharing their negatives: matrix products around the scores kernel, a block of rows at a time.
//
// Tables in bf16 go to the tensor cores as they are: products of bf16 numbers are exact in fp32, in which they are summed,
// and the scores kernel multiplies by the inverse norms as it reads the scores. The coefficients are rounded to bf16 for the
// products that carry them back. Other dtypes are multiplied in the compute dtype: fp32 in TF32 where the user allows it,
// as for any product of torch's.
#include "../shared_negatives.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "rows.h"
#include "tensors.h"

namespace cw_cuda {

using cw_ext::Exclusion;
using cw_ext::ScoresCall;
using cw_ext::SharedNegativesCall;

namespace {

// Scores handled at a time: 32 MB in fp32, which stay in the L2 cache of a large GPU.
#ifdef CW_CUDA_EMULATION  // so few that tests come to several blocks
constexpr int64_t kBlockElements = int64_t(1) << 10;
#else
constexpr int64_t kBlockElements = int64_t(1) << 23;
#endif

// Writes −∞ where the rows [begin, begin + values.size(0)) leave columns out; counts those to `excluded`, unless it is
// undefined.
void leave_out(const SharedNegativesCall& call, int64_t begin, const Tensor& values, const Tensor& excluded) {
  const Exclusion& exclusion = call.exclusion;
  NegativeSource source = source_of(exclusion.history);
  if (source.query_ids) source.query_ids += begin;
  source.pos_ids = input<int64_t>(call.pos_ids) + begin;
  with_compute_type(values.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ExclusionTask<T> task{source,
                                num_known(exclusion.history),
                                input<int64_t>(call.pos_ids) + begin,
                                input<int32_t>(exclusion.first_column),
                                input<int32_t>(exclusion.next_column),
                                call.items.size(0),
                                values.size(0),
                                values.size(1),
                                output<T>(values),
                                output<int32_t>(excluded)};
    STD_CUDA_CHECK(launch_exclusion(task, current_stream(values)));
  });
}

// Leaves out of the block what its rows, from `begin` on, leave out: by scores of −∞ that are not counted, which the
// fast forms of the scores kernel take. By log weights of −∞ where a score of −∞ counts in the denominator, or there are
// log weights or a curve of them.
void exclude(const SharedNegativesCall& call, int64_t begin, ScoresCall& block) {
  const bool through_log_q =
      call.loss.arguments.normalize_weights || call.log_q.defined() || call.loss.curve.log_weights.defined();
  if (!through_log_q) {
    block.excluded = empty({block.neg.size(0)}, options_of(block.neg, kInt));
    leave_out(call, begin, block.neg, block.excluded);
    return;
  }
  const Tensor log_q = call.log_q.defined() ? empty(block.neg.sizes(), options_of(block.neg))
                                            : zeros(block.neg.sizes(), options_of(block.neg));
  if (call.log_q.defined()) copy(block.log_q, log_q);
  leave_out(call, begin, log_q, MaybeTensor());
  block.log_q = log_q;
}

// Of the whole call.
struct Operands {
  MaybeTensor unit;           // [B, D] T: the queries, over their norms where normalised
  MaybeTensor query_inverse;  // [B] T, or undefined: not normalised
  MaybeTensor row_scale;      // [B] T, as ScoresCall has them
  MaybeTensor column_scale;   // [N] T
  MaybeTensor left;           // [B, D], bf16 or T: these two give the raw scores
  MaybeTensor right;          // [D, N]
  MaybeTensor carried;        // [N, D], bf16 or T: this one takes coefficients to the queries; only with gradients
};

template <typename In>
Operands operands_of(const SharedNegativesCall& call) {
  using T = typename Compute<In>::type;
  constexpr bool kRaw = std::is_same_v<In, __nv_bfloat16>;
  const int64_t rows = call.queries.size(0), dim = call.queries.size(1), n = call.neg_ids.size(0);
  const auto compute = options_of(call.out.loss);
  const cudaStream_t stream = current_stream(call.queries);
  Operands result;
  result.unit = call.unit_queries;
  if (!call.with_gradients) result.unit = empty({rows, dim}, compute);
  if (call.normalized) result.query_inverse = empty({rows}, compute);
  result.row_scale = empty({rows}, compute);
  result.column_scale = empty({n}, compute);

  // Padding is masked out: negatives, and whole rows whose positive it is. This is done always, as a check for padding
  // would wait for the device.
  SharedRowsTask<In> task{};
  task.table = input<In>(call.queries);
  task.ids = input<int64_t>(call.pos_ids);
  task.num_items = call.items.size(0);
  task.rows = rows;
  task.dim = dim;
  task.normalized = call.normalized;
  task.by_norms = kRaw && call.normalized;
  task.marks = task.by_norms && call.exclusion.first_column.defined();
  task.scale = T(call.scale);
  task.unit = output<T>(result.unit);
  task.inverse = output<T>(result.query_inverse);
  task.factors = output<T>(result.row_scale);
  STD_CUDA_CHECK(launch_shared_rows(task, stream));

  const Tensor negatives = empty({n, dim}, kRaw ? options_of(call.items) : compute);
  if (call.with_gradients) result.carried = empty(negatives.sizes(), options_of(negatives));
  task.table = input<In>(call.items);
  task.ids = input<int64_t>(call.neg_ids);
  task.gathers = true;
  task.rows = n;
  task.scale = T(1);
  task.gathered = kRaw ? output<In>(negatives) : nullptr;
  task.unit = kRaw ? nullptr : output<T>(negatives);
  task.inverse = nullptr;
  task.carried = output<typename Kept<In>::type>(result.carried);
  task.factors = output<T>(result.column_scale);
  STD_CUDA_CHECK(launch_shared_rows(task, stream));
  result.left = kRaw ? call.queries : result.unit;
  result.right = transposed(negatives);
  return result;
}

// Fills a task's fields for the rows from `begin` on.
template <typename Task>
void fill_rows(const SharedNegativesCall& call, const Operands& operands, int64_t begin, int64_t count, Task& task) {
  using T = typename Task::T;
  const int64_t dim = call.queries.size(1), m = call.extra_ids.size(1);
  task.unit_queries = input<T>(operands.unit) + begin * dim;
  task.items = static_cast<decltype(task.items)>(call.items.const_data_ptr());
  task.pairs = pairs_of(call.pos_ids, call.extra_ids, MaybeTensor(), call.items.size(0));
  task.pairs.pos_ids += begin;
  task.pairs.extra_ids += begin * m;
  task.rows = count;
  task.dim = dim;
  task.scale = T(call.scale);
}

template <typename In>
void run_block(const SharedNegativesCall& call, const Operands& operands, int64_t begin, int64_t count) {
  using T = typename Compute<In>::type;
  constexpr bool kRaw = std::is_same_v<In, __nv_bfloat16>;
  const int64_t n = call.neg_ids.size(0), m = call.extra_ids.size(1);
  const auto compute = options_of(call.out.loss);
  const cudaStream_t stream = current_stream(call.queries);

  ScoresCall scores;
  scores.loss = narrowed(call.loss, begin, count);
  scores.pos = empty({count}, compute);
  scores.extra = empty({count, m}, compute);
  const Tensor inverse = empty({count, 1 + m}, compute);
  PositiveScoresTask<In> positives;
  fill_rows(call, operands, begin, count, positives);
  positives.normalized = call.normalized;
  positives.pos = output<T>(scores.pos);
  positives.extra = output<T>(scores.extra);
  positives.inverse = output<T>(inverse);
  STD_CUDA_CHECK(launch_positive_scores(positives, stream));

  scores.neg = empty({count, n}, compute);
  product(narrowed(operands.left, begin, count), operands.right, scores.neg);
  scores.row_scale = narrowed(operands.row_scale, begin, count);
  scores.column_scale = operands.column_scale;
  scores.log_q = narrowed(call.log_q, begin, count);
  scores.with_gradients = call.with_gradients;
  scores.out = narrowed(call.out, begin, count);
  if (call.exclusion.first_column.defined()) exclude(call, begin, scores);
  Tensor shared = narrowed(call.shared_coefficients, begin, count);  // undefined: not kept beyond the block
  if (call.with_gradients) {
    scores.d_pos = empty({count}, compute);
    scores.d_neg = kRaw || !shared.defined() ? empty({count, n}, compute) : shared;
    scores.d_extra = empty({count, m}, compute);
  }
  cw_cuda::scores(scores);
  if (!call.with_gradients) return;

  if (kRaw) {
    if (!shared.defined()) shared = empty({count, n}, options_of(call.items));
    copy(scores.d_neg, shared);
  } else {
    shared = scores.d_neg;
  }
  const Tensor d_queries = narrowed(call.d_queries, begin, count);
  product(shared, operands.carried, d_queries);
  QueryGradientTask<In> gradient;
  fill_rows(call, operands, begin, count, gradient);
  gradient.query_inverse = call.normalized ? input<T>(operands.query_inverse) + begin : nullptr;
  gradient.inverse = input<T>(inverse);
  gradient.d_pos = input<T>(scores.d_pos);
  gradient.d_extra = input<T>(scores.d_extra);
  gradient.live = input<bool>(scores.out.live);
  gradient.coefficients = output<T>(call.coefficients) + begin * (1 + m);
  gradient.d_queries = output<T>(d_queries);
  STD_CUDA_CHECK(launch_query_gradient(gradient, stream));

  if (!call.negative_sums.defined()) return;
  const Tensor sources = empty({count, call.queries.size(1)}, options_of(shared));
  copy_finite(narrowed(operands.unit, begin, count), narrowed(call.row_factor, begin, count), call.scale, sources);
  if (!kRaw) return add_product(transposed(shared), sources, call.negative_sums);
  const Tensor sums = empty(call.negative_sums.sizes(), compute);
  product(transposed(shared), sources, sums);
  add(sums, call.negative_sums);
}

}  // namespace

Exclusion columns_by_item(const Tensor& ids, int64_t num_items) {
  const int64_t n = ids.size(0);
  CW_CHECK_VALUE(n <= std::numeric_limits<int32_t>::max() && num_items < std::numeric_limits<int32_t>::max(),
                 "rows can leave out negatives where they and the items are fewer than 2^31 - 1, got ", n, " and ",
                 num_items);
  const DeviceGuard guard(ids);
  const cudaStream_t stream = current_stream(ids);
  const auto ints = options_of(ids, kInt);
  const Tensor room = empty({4, n}, ints), first = empty({num_items}, ints), next = empty({n}, ints);
  auto* const words = static_cast<uint32_t*>(room.mutable_data_ptr());
  const SortedPairs pairs{words, words + n, words + 2 * n, words + 3 * n, n, num_items};
  STD_CUDA_CHECK(launch_column_keys(input<int64_t>(ids), pairs, stream));
  sort(pairs, ids);
  STD_CUDA_CHECK(cudaMemsetAsync(first.mutable_data_ptr(), -1, size_t(num_items) * sizeof(int32_t), stream));
  const ColumnListTask task{pairs.keys, pairs.places, n, num_items, output<int32_t>(first), output<int32_t>(next)};
  STD_CUDA_CHECK(launch_column_lists(task, stream));
  return {first, next, {}};
}

Catalogue catalogue(int64_t num_items, const cw_ext::Device& device) {
  const cw_ext::Options ints{kInt, device};
  const Tensor ids = empty({num_items}, ints.with(kLong)), first = empty({num_items}, ints);
  const Tensor next = empty({num_items}, ints);
  const DeviceGuard guard(ids);
  const CatalogueTask task{num_items, output<int64_t>(ids), output<int32_t>(first), output<int32_t>(next)};
  STD_CUDA_CHECK(launch_catalogue(task, current_stream(ids)));
  return {ids, {first, next, {}}};
}

void shared_negatives(const SharedNegativesCall& call) {
  const DeviceGuard guard(call.queries);
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
    const Operands operands = operands_of<In>(call);
    const int64_t rows = call.queries.size(0), block = std::max<int64_t>(1, kBlockElements / call.neg_ids.size(0));
    for (int64_t begin = 0; begin < rows; begin += block) {
      run_block<In>(call, operands, begin, std::min(block, rows - begin));
    }
  });
}

}  // namespace cw_cuda
