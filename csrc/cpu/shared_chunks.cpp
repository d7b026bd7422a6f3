// From embeddings on the CPU, where all rows share many negatives: blocks of rows in parallel, each through chunks of the
// negatives; and then, where nothing of size B·N is kept, chunks in parallel, each over the rows.
#include "shared_chunks.h"

#include <vector>

#include "../allocate.h"
#include "../cw_row.h"
#include "left_out.h"

namespace cw_cpu {

namespace {

// From how many negatives on the chunks are faster, by products in the compute type and in bf16.
constexpr int64_t kFewestNegatives = 2048, kFewestOfPairs = 1024;

// How many terms are kept at a time, if not all of their gradients: those of a few rows more than kRowsOfChunks where they stay
// in L3, 8 MB in fp32; of fewer where they would take more than 256 MB.
constexpr int64_t kTermsInCache = int64_t(1) << 21;
constexpr int64_t kMostTerms = int64_t(1) << 26;

int64_t rows_at_once(int64_t n) {
  if (n > kMostTerms / kRowsOfChunks) return std::max(kRowStep, kMostTerms / n / kRowStep * kRowStep);
  return std::max(kRowsOfChunks, kTermsInCache / n / kRowsOfChunks * kRowsOfChunks);
}

// The columns that rows leave out (Exclusion), row by row and rising.
struct LeftOut {
  std::vector<int64_t> starts;
  std::vector<int32_t> columns;
};

template <typename In>
LeftOut left_out_of(const SharedTask<In>& task, int64_t rows) {
  LeftOut found;
  if (!task.excludes) return found;
  found.starts.resize(size_t(rows) + 1);
  constexpr int64_t kGrain = 64;
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) each_left_out(task, b, [&](int64_t) { ++found.starts[b + 1]; });
  });
  for (int64_t b = 0; b < rows; ++b) found.starts[b + 1] += found.starts[b];
  found.columns.resize(size_t(found.starts[rows]));
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int32_t* const first = found.columns.data() + found.starts[b];
      int32_t* last = first;
      each_left_out(task, b, [&](int64_t column) { *last++ = int32_t(column); });
      std::sort(first, last);
    }
  });
  return found;
}

#if defined(__x86_64__)
#define CW_WITH_OPERAND(...)                                   \
  if constexpr (std::is_same_v<Operand, Pair>) {               \
    isa_avx512::__VA_ARGS__;                                   \
  } else {                                                     \
    CW_WITH_ISA(__VA_ARGS__);                                  \
  }
#else
#define CW_WITH_OPERAND(...) CW_WITH_ISA(__VA_ARGS__)
#endif

template <typename In, typename Operand>
void run(const cw_ext::SharedNegativesCall& call) {
  using T = typename Compute<In>::type;
  constexpr int64_t kPanel = ProductTask<T>::kPanel, kEach = kPerOperand<Operand>;
  std::vector<In> room;
  ChunkTask<In, Operand> task;
  fill_shared_task(call, room, task);
  const int64_t rows = call.queries.size(0), n = task.n, dim = task.items.dim;
  const int64_t chunks = (n + kChunk - 1) / kChunk, dim_panels = (dim + kPanel - 1) / kPanel;
  const LeftOut left_out = left_out_of(task, rows);
  const auto columns = scratch<Operand>(chunks * kChunk * ((dim + kEach - 1) / kEach));
  const auto item_rows = scratch<Operand>(chunks * task.kDepth * dim_panels * kPanel);
  const auto column_scale = scratch<T>(kEach > 1 && task.normalized ? n : 0);
  task.packed_columns = columns.get();
  task.packed_rows = item_rows.get();
  task.column_scale = kEach > 1 && task.normalized ? column_scale.get() : nullptr;
  parallel_for(0, chunks, grain(kChunk * dim), [&](int64_t begin, int64_t end) {
    const auto own = scratch<T>(pack_chunks_scratch(dim));
    CW_WITH_OPERAND(pack_chunks<In, Operand>(task, begin, end, own.get()));
  });

  const bool summed = call.negative_sums.defined();
  const int64_t at_once = summed ? std::min(rows, rows_at_once(n)) : rows;
  task.rows_at_once = (at_once + 1) / 2 * 2;
  const auto factors = scratch<T>(call.with_gradients ? chunks * task.rows_at_once : 0);
  task.factors = factors.get();
  const Options options = options_of(call.out.loss);
  Tensor kept, sums = call.negative_sums;
  const int64_t stride = dim_panels * kPanel;
  task.terms = nullptr;
  if (summed) {
    kept = cw_ext::empty_large({chunks, task.rows_at_once / kEach * kChunkStride}, options);
    task.terms = static_cast<Operand*>(kept.data_ptr());
    if (stride != dim) sums = zeros({n, stride}, options);
  }

  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    task.first_row = first;
    task.left_out_starts = task.excludes ? left_out.starts.data() + first : nullptr;
    task.left_out_columns = left_out.columns.data();
    parallel_for(0, (count + kRowStep - 1) / kRowStep, grain(kRowStep * n * dim), [&](int64_t begin, int64_t end) {
      const auto own = scratch<T>(shared_chunks_scratch(task.m, dim));
      CW_WITH_OPERAND(shared_chunks<In, Operand>(task, first + begin * kRowStep, first + std::min(count, end * kRowStep),
                                                 own.get()));
    });
    if (!summed) continue;
    const T* const row_factor = pointer<const T>(call.row_factor);
    const ChunkSums<T> to{pointer<T>(sums), stride, row_factor ? row_factor + first : nullptr, count};
    parallel_for(0, chunks, grain(kChunk * count * dim), [&](int64_t begin, int64_t end) {
      const auto own = scratch<Operand>(dim_panels * ((count + kEach - 1) / kEach) * kPanel);
      CW_WITH_OPERAND(add_chunk_sums<In, Operand>(task, to, begin, end, own.get()));
    });
  }
  if (!summed || stride == dim) return;
  const T* const from = pointer<const T>(sums);
  T* const to = pointer<T>(call.negative_sums);
  for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * stride, dim, to + i * dim);
}

}  // namespace

bool goes_in_chunks(const cw_ext::SharedNegativesCall& call) {
  const cw_ext::LossArguments& loss = call.loss.arguments;
  const bool of_pairs = has_bf16_products() && (call.queries.scalar_type() == kBFloat16 || call.bf16_products);
  return call.neg_ids.size(0) >= (of_pairs ? kFewestOfPairs : kFewestNegatives) &&
         cw::slope_is_constant(cw::Weighting(loss.weighting), cw::Surrogate(loss.surrogate),
                               cw::make_parameters<double>(loss, 1)) &&
         !call.loss.values.temperature.rows.defined() && !call.loss.curve.log_weights.defined() &&
         !call.out.d_log_q.defined();
}

void shared_chunks(const cw_ext::SharedNegativesCall& call) {
  with_type(call.queries.scalar_type(), [&](auto element) {
    using In = decltype(element);
#if defined(__x86_64__)
    if constexpr (std::is_same_v<In, BFloat16> || std::is_same_v<In, float>) {
      if (has_bf16_products() && (std::is_same_v<In, BFloat16> || call.bf16_products)) return run<In, Pair>(call);
    }
#endif
    run<In, typename Compute<In>::type>(call);
  });
}

}  // namespace cw_cpu
