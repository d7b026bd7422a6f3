// The ATen side of the item gradient: sums per item, by atomic additions or over sorted pairs.
#include "item_sums.h"


#include <algorithm>
#include <limits>
#include <type_traits>

#include "shared_products.h"
#include "tensors.h"

namespace cw_cuda {

using cw_ext::ItemGradientCall;

namespace {

// Pairs that are sorted at a time: places have 32 bits.
constexpr int64_t kMostSorted = int64_t(1) << 30;
// From this many pairs on they are sorted. With fewer, the dozen launches of the sort take longer than atomic additions: by
// a count, not yet by a measurement.
constexpr int64_t kLeastSorted = int64_t(1) << 17;

// The pairs of the rows [begin, begin + count).
template <typename T>
ItemSumTask<T> own_pairs(const ItemGradientCall& call, const Tensor& sum, int64_t begin, int64_t count) {
  const auto part = [&](const Tensor& x) { return narrowed(x, begin, count); };
  return {input<T>(part(call.sources)),
          input<T>(part(call.coefficients)),
          pairs_of(part(call.pos_ids), part(call.extra_ids), part(call.neg_ids), call.items.size(0)),
          count,
          call.items.size(1),
          output<T>(sum)};
}

// The pairs of the shared negatives: a pair per further row of the sources, with coefficient 1.
template <typename T>
ItemSumTask<T> shared_pairs(const ItemGradientCall& call, const Tensor& sum) {
  const int64_t rows = call.coefficients.size(0), count = call.shared_ids.defined() ? call.shared_ids.size(0) : 0;
  return {input<T>(call.sources) + rows * call.items.size(1),
          nullptr,
          pairs_of(call.shared_ids, Tensor(), Tensor(), call.items.size(0)),
          count,
          call.items.size(1),
          output<T>(sum)};
}

template <typename T>
void add_atomically(const ItemGradientCall& call, const Tensor& sum, cudaStream_t stream) {
  C10_CUDA_CHECK(launch_atomic_sum(own_pairs<T>(call, sum, 0, call.coefficients.size(0)), stream));
  C10_CUDA_CHECK(launch_atomic_sum(shared_pairs<T>(call, sum), stream));
}

// Adds the sums over the pairs of `own`, and over those of `shared`, whose sources begin at row `further` of own's.
template <typename T>
void add_sorted_part(const ItemSumTask<T>& own, const ItemSumTask<T>& shared, int64_t further, bool accumulate,
                const Tensor& sum, cudaStream_t stream) {
  const int64_t width = 1 + own.pairs.m + own.pairs.n, paired = own.rows * width, count = paired + shared.rows;
  const auto bytes = options_of(sum, kByte);
  const Tensor room = at::empty({4, count}, options_of(sum, kInt));
  auto* const words = reinterpret_cast<uint32_t*>(room.mutable_data_ptr());
  const SortedPairs pairs{words, words + count, words + 2 * count, words + 3 * count, count, own.pairs.num_items};
  C10_CUDA_CHECK(launch_sort_keys(own, 0, pairs, stream));
  C10_CUDA_CHECK(launch_sort_keys(shared, paired, pairs, stream));
  size_t needed = 0;
  C10_CUDA_CHECK(sort_pairs(nullptr, &needed, pairs, stream));
  const Tensor temporary = at::empty({std::max<int64_t>(1, int64_t(needed))}, bytes);
  C10_CUDA_CHECK(sort_pairs(temporary.mutable_data_ptr(), &needed, pairs, stream));

  SortedSumTask<T> task;
  task.sources = own.sources;
  task.coefficients = own.coefficients;
  task.rows = own.rows;
  task.width = width;
  task.further = further;
  task.dim = own.dim;
  task.keys = pairs.keys;
  task.places = pairs.places;
  task.count = count;
  task.num_items = own.pairs.num_items;
  task.accumulate = accumulate;
  task.span = span_of(count);
  const Tensor carry = at::empty({(count + task.span - 1) / task.span, 2, task.dim}, options_of(sum));
  task.carry = output<T>(carry);
  task.sum = own.sum;
  C10_CUDA_CHECK(launch_sorted_sum(task, stream));
}

template <typename T>
void add_sorted(const ItemGradientCall& call, const Tensor& sum, bool accumulate, cudaStream_t stream) {
  const int64_t rows = call.coefficients.size(0);
  const int64_t step = std::max<int64_t>(1, kMostSorted / call.coefficients.size(1));
  ItemSumTask<T> shared = shared_pairs<T>(call, sum);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const ItemSumTask<T> own = own_pairs<T>(call, sum, begin, std::min(step, rows - begin));
    add_sorted_part(own, shared, rows, accumulate || begin > 0, sum, stream);
    shared.rows = 0;  // they are added once
  }
}

// With the shared negatives' sums as further source rows.
ItemGradientCall with_shared_sources(ItemGradientCall call) {
  if (call.shared_ids.defined()) {
    const Tensor sources = finite_or_zero(call.sources).to(call.shared_coefficients.scalar_type());
    const Tensor sums = product(call.shared_coefficients.t(), sources);
    call.sources = at::cat({call.sources, at::mul(sums, call.scale)});
  }
  return call;
}

}  // namespace

ItemTotals begin_totals(const ItemGradientCall& call, int64_t pairs) {
  const bool in_place = call.gradient.scalar_type() == call.sources.scalar_type();
  const Tensor sum = in_place ? call.gradient : at::empty(call.gradient.sizes(), options_of(call.sources));
  if (call.initial.defined()) {
    sum.copy_(call.initial);
  } else {
    sum.zero_();
  }
  const bool sorts = call.sums == cw_ext::ItemSums::chosen
                         ? at::globalContext().deterministicAlgorithms() || pairs >= kLeastSorted
                         : call.sums == cw_ext::ItemSums::sorted;
  return {sum, sorts && call.items.size(0) < std::numeric_limits<int32_t>::max(), !call.initial.defined()};
}

void add_pairs(const ItemGradientCall& given, ItemTotals& totals) {
  const ItemGradientCall call = with_shared_sources(given);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(totals.sum.scalar_type(), [&](auto element) {
    using T = decltype(element);
    if (totals.sorts) {
      add_sorted<T>(call, totals.sum, !totals.zeros, stream);
    } else {
      add_atomically<T>(call, totals.sum, stream);
    }
  });
  totals.zeros = false;
}

void finish_totals(const ItemGradientCall& call, const ItemTotals& totals) {
  if (!call.normalized) {
    if (!totals.sum.is_same(call.gradient)) call.gradient.copy_(totals.sum);
    return;
  }
  with_type(call.items.scalar_type(), [&](auto element) {
    using In = decltype(element);
    const ProjectionTask<In> task{input<typename Compute<In>::type>(totals.sum), input<In>(call.items),
                                  call.items.size(0), call.items.size(1), output<In>(call.gradient)};
    C10_CUDA_CHECK(launch_projection(task, c10::cuda::getCurrentCUDAStream()));
  });
}

void item_gradient(const ItemGradientCall& call) {
  if (call.gradient.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(call.items.device());
  ItemTotals totals = begin_totals(call, call.coefficients.numel());
  add_pairs(call, totals);
  finish_totals(call, totals);
}

}  // namespace cw_cuda
