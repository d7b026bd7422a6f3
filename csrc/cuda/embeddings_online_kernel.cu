// From embeddings, each row with its own negatives, reading every item row once, as flash attention does: while an item is in
// registers its score is found and the item added to the query's gradient with its term relative to the largest exponent
// so far; a larger one rescales what has been added. A block takes a row, each warp its share of the negatives.
#include "embedding_row.cuh"
#include "register_rows.cuh"

namespace cw_cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// Blocks that a multiprocessor's registers must hold: as many as go without spilling.
template <typename In>
constexpr int kResident = sizeof(In) == 2 ? 3 : 4;

__device__ __forceinline__ float max_over_warp(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// A warp's share of a row's negatives.
template <typename Rows>
struct Visited {
  float max = -infinity<float>();       // the largest exponent
  typename Rows::Slice gradient = {};   // Σ term·slope·x/|x|, relative to it
};

template <typename Rows, typename In>
__device__ __forceinline__ Visited<Rows> visit_negatives(const EmbeddingsTask<In>& task, const EmbeddingRow<float>& row,
                                                         const typename Rows::Slice& unit_query,
                                                         const Parameters<float>& p, RowStatistics<float>& own) {
  const bool has_denominator = row.has_log_q || p.normalize_weights;
  const float threshold = float(row.values.threshold);
  Visited<Rows> visited;
  const typename Rows::Table table(task.items, task.dim);
  Rows rows;
  float sum = 0;
  const int n = int(row.n);
  int next = int(threadIdx.x) / kWarp * Rows::kPairs + Rows::own_pair();
  // Ids are read a turn ahead; otherwise each turn would wait for two reads in sequence.
  int64_t next_id = next < n ? unchecked_negative_id(row.pairs, row.b, next) : -1;
#pragma unroll 1
  for (int first = next - Rows::own_pair(); first < n; first += kWarps * Rows::kPairs) {
    const int j = next;
    const int id = int(checked_negative_id(row.pairs, next_id));
    next += kWarps * Rows::kPairs;
    next_id = next < n ? unchecked_negative_id(row.pairs, row.b, next) : -1;
    rows.read(table, task.dim, id);

    float dot, squared;
    rows.products(unit_query, dot, squared);
    const float inverse = task.normalized ? inverse_norm(squared) : 1;
    const float score = task.scale * dot * inverse;
    const bool here = j < n, masked = id < 0 || row.dead;
    const float log_q = row.log_weight(j, score, masked);
    Mass<float> element = mass(score, row.pos, log_q, p.weighting, p.surrogate, p);
    if (!(element.exponent == element.exponent)) {  // the row will be NaN in any case
      own.non_finite |= here;
      element.exponent = -infinity<float>();
    }

    const float highest = max_over_warp(element.exponent);
    if (highest > visited.max) {
      const float rescale = exp_nonpositive(visited.max - highest);
      sum *= rescale;
#pragma unroll
      for (auto& chunk : visited.gradient) {
#pragma unroll
        for (float& value : chunk) value *= rescale;
      }
      visited.max = highest;
    }
    const float own_term = element.exponent > -infinity<float>() ? term(element, visited.max) : 0;
    if (here && Rows::counts()) {
      sum += own_term;
      own.masked += log_q == -infinity<float>();
      own.above += score > threshold && log_q != -infinity<float>();
      if (has_denominator) {
        const Mass<float> parts[1] = {denominator_mass(score, row.pos, log_q, p)};
        add(own.denominator, parts);
      }
      if (task.with_gradients) row.scores[1 + row.m + j] = score;
    }
    if (!task.with_gradients) continue;
    rows.keep_packed();
    const float weight = score_gradient(own_term, inverse, score - row.pos, p);
    if (__any_sync(kAllLanes, weight == 0 && !is_finite(squared))) rows.drop_weightless(weight);
    rows.add_weighted(weight, visited.gradient);
  }
  own.negatives = {visited.max, sum};
  Rows::sum_over_groups(visited.gradient);
  return visited;
}

// The extra positives of a row, by one warp.
template <typename Rows, typename In>
__device__ __forceinline__ void visit_positives(const EmbeddingsTask<In>& task, const EmbeddingRow<float>& row,
                                                const typename Rows::Slice& unit_query, const Parameters<float>& p,
                                                RowStatistics<float>& own) {
  const typename Rows::Table table(task.items, task.dim);
  Rows rows;
#pragma unroll 1
  for (int64_t first = 0; first < row.m; first += Rows::kPairs) {
    const int64_t k = first + Rows::own_pair();
    const int id = k < row.m ? int(pair_id(row.pairs, row.b, 1 + k)) : -1;
    rows.read(table, task.dim, id);
    float dot, squared;
    rows.products(unit_query, dot, squared);
    if (k < row.m && Rows::counts()) {
      const float inverse = task.normalized ? inverse_norm(squared) : 1;
      const float score = id < 0 ? -infinity<float>() : task.scale * dot * inverse;
      add_positive(own, score, row.pos, p);
      if (task.with_gradients) row.scores[1 + k] = score;
    }
  }
}

// What the positive and the extra positives add to the query's gradient, by one warp, once their coefficients are written.
template <typename Rows, typename In>
__device__ __forceinline__ void add_positives(const EmbeddingsTask<In>& task, const EmbeddingRow<float>& row,
                                              const typename Rows::Slice& unit_query, typename Rows::Slice& gradient) {
  const typename Rows::Table table(task.items, task.dim);
  Rows rows;
#pragma unroll 1
  for (int64_t first = 0; first <= row.m; first += Rows::kPairs) {
    const int64_t c = first + Rows::own_pair();
    const int id = c <= row.m ? int(pair_id(row.pairs, row.b, c)) : -1;
    rows.read(table, task.dim, id);
    float dot, squared;
    rows.products(unit_query, dot, squared);
    const float inverse = task.normalized ? inverse_norm(squared) : 1;
    const float coefficient = id < 0 ? 0 : row.scores[c];
    rows.keep_packed();
    const float weight = coefficient == 0 ? 0 : coefficient * inverse;
    if (__any_sync(kAllLanes, weight == 0 && !is_finite(squared))) rows.drop_weightless(weight);
    rows.add_weighted(weight, gradient);
  }
  Rows::sum_over_groups(gradient);
}

template <typename In, int kLanes, int kChunks>
__global__ void __launch_bounds__(kThreads, kResident<In>)
    embeddings_online_kernel(const EmbeddingsTask<In> task, const Parameters<float> common) {
  using Rows = RegisterRows<In, kLanes, kChunks>;
  using Slice = typename Rows::Slice;
  __shared__ TeamScratch<float, kWarps> scratch;
  __shared__ __align__(kVectorBytes) float gradients[kWarps][Rows::kWidth];
  __shared__ float maxima[kWarps];

  const int64_t b = blockIdx.x, dim = task.dim;
  const int warp = int(threadIdx.x) / kWarp;
  Slice unit_query;
  Rows::load_slice(task.queries + b * dim, dim, unit_query);
  const float query_inverse = task.normalized ? inverse_norm(Rows::dot(unit_query, unit_query)) : 1;
#pragma unroll
  for (auto& chunk : unit_query) {
#pragma unroll
    for (float& value : chunk) value *= query_inverse;
  }

  float pos = 0;
  const int64_t pos_id = pair_id(task.pairs, b, 0);
  if (pos_id >= 0) {
    Slice positive;
    Rows::load_slice(task.items + pos_id * dim, dim, positive);
    const float inverse = task.normalized ? inverse_norm(Rows::dot(positive, positive)) : 1;
    pos = task.scale * Rows::dot(unit_query, positive) * inverse;
  }
  float* const scores = task.with_gradients ? task.coefficients + b * (1 + task.pairs.m + task.pairs.n) : nullptr;
  const EmbeddingRow<float> row = embedding_row(task, b, pos, scores);

  const Parameters<float> p = row_parameters(task, common, b);
  RowStatistics<float> own = no_statistics<float>();
  Visited<Rows> visited = visit_negatives<Rows>(task, row, unit_query, p, own);
  if (warp == kWarps - 1) visit_positives<Rows>(task, row, unit_query, p, own);
  if (Rows::group() == 0) Rows::store_slice(visited.gradient, Rows::kWidth, gradients[warp]);
  if (threadIdx.x % kWarp == 0) maxima[warp] = visited.max;
  conclude(own, row, b, p, task.out, scratch);
  __syncthreads();
  if (!task.with_gradients) return;
  give_all_gradients(row, b, p, task.out, scratch);
  __syncthreads();  // the positives' coefficients are written
  if (warp != 0) return;
  const RowPlan<float> plan = scratch.plan;

  // The warps' sums, from their own maxima to the row's.
  Slice gradient = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    Slice part;
    Rows::load_slice(gradients[w], Rows::kWidth, part);
    const float factor = exp_nonpositive(maxima[w] - plan.negatives_max);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int v = 0; v < Rows::kVec; ++v) gradient[c][v] += factor * part[c][v];
    }
  }
  Slice positives = {};
  add_positives<Rows>(task, row, unit_query, positives);
  const float unit = plan.negatives_unit * task.scale;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int v = 0; v < Rows::kVec; ++v) gradient[c][v] = unit * gradient[c][v] + positives[c][v];
  }

  // Through the normalisation: the gradient without its component along the query, divided by the query's norm.
  const float along = task.normalized ? Rows::dot(gradient, unit_query) : 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int v = 0; v < Rows::kVec; ++v) {
      const float projected = query_inverse * (gradient[c][v] - along * unit_query[c][v]);
      gradient[c][v] = plan.regular ? projected : plan.filler;
    }
  }
  if (Rows::group() != 0) return;
  Rows::store_slice(gradient, dim, task.d_queries + b * dim);
  Rows::store_slice(unit_query, dim, task.unit_queries + b * dim);
}

// Calls use(kernel) with the kernel for the task's dimension.
template <typename In, typename Use>
cudaError_t with_kernel(const EmbeddingsTask<In>& task, Use&& use) {
  const int64_t chunks = task.dim * int64_t(sizeof(In)) / kVectorBytes;
  if (chunks <= 8) return use(embeddings_online_kernel<In, 8, 1>);
  if (chunks <= 16) return use(embeddings_online_kernel<In, 16, 1>);
  if (chunks <= 32) return use(embeddings_online_kernel<In, 32, 1>);
  return use(embeddings_online_kernel<In, 32, 2>);
}

}  // namespace

template <typename In>
bool goes_online(const EmbeddingsTask<In>& task) {
  const bool is_wide = task.dim * int64_t(sizeof(In)) > 64 * kVectorBytes;
  const bool through_denominator = task.arguments.normalize_weights && !task.arguments.detach_weights;
  return !is_wide && !through_denominator && rows_are_aligned(task.items, task.dim) &&
         rows_are_aligned(task.queries, task.dim) && task.pairs.num_items <= kMaxGrid && task.rows <= kMaxGrid &&
         task.pairs.n <= kMaxGrid / 2;
}

template <typename In>
cudaError_t launch_embeddings_online(const EmbeddingsTask<In>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  const auto p = make_parameters<float>(task.arguments, task.values.temperature.all);
  return with_kernel(task, [&](auto kernel) {
    return launch_kernel(kernel, unsigned(task.rows), kThreads, 0, stream, task, p);
  });
}

#define CW_INSTANTIATE(In)                                       \
  template bool goes_online(const EmbeddingsTask<In>&);      \
  template cudaError_t launch_embeddings_online(const EmbeddingsTask<In>&, cudaStream_t);

CW_INSTANTIATE(float)
CW_INSTANTIATE(__half)
CW_INSTANTIATE(__nv_bfloat16)

}  // namespace cw_cuda
