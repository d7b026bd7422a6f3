// From scores. In the loss's common forms a row stays in shared memory between its one read and its one write; in the others,
// and where it is too long, it is read twice, by a warp or by a block, depending on its length.
#include "scores_smem.cuh"

namespace cw_cuda {

namespace {

constexpr int64_t kWarpRow = 1024;  // up to here a warp takes a row
constexpr int kBlockWarps = 8;
constexpr int kRowsPerBlock = 4;  // where a warp takes a row

template <typename In>
struct ScoreRow {
  using T = typename Compute<In>::type;
  static constexpr int kVec = kVectorBytes / int(sizeof(In));
  int64_t n;
  int64_t m;
  int64_t excluded;
  T pos;
  RowArguments values;
  bool has_log_q;
  bool wants_log_q;
  bool wants_temperature;
  bool inputs_aligned;
  bool outputs_aligned;
  const In* neg;
  const In* extra_scores;
  const T* log_weights;
  const Curve<T>& curve;
  const T* curve_values;  // [K], or null: no curve
  const T* column_scale;
  T row_scale;
  T* d_pos;
  typename Kept<In>::type* d_neg;
  T* d_extra;
  T* d_log_q;

  __device__ ScoreRow(const ScoresTask<In>& task, int64_t b) : curve(task.curve), curve_values(task.curve.of_row(b)) {
    n = task.n;
    m = task.m;
    excluded = task.excluded ? task.excluded[b] : 0;
    pos = to_compute(task.pos[b * task.pos_stride]);
    values = task.values.at(b);
    has_log_q = task.log_q != nullptr || curve.log_weights != nullptr;
    wants_log_q = task.with_gradients && task.out.d_log_q != nullptr;
    wants_temperature = task.with_gradients && task.values.temperature.rows != nullptr;
    neg = task.neg + b * task.neg_stride;
    extra_scores = task.extra + b * task.extra_stride;
    log_weights = task.log_q ? task.log_q + b * task.log_q_stride : nullptr;
    column_scale = task.column_scale;
    row_scale = column_scale ? task.row_scale[b] : T(1);
    d_pos = task.d_pos + b;
    d_neg = task.d_neg + b * n;
    d_extra = task.d_extra + b * m;
    d_log_q = task.out.d_log_q + b * n;
    inputs_aligned = is_aligned(neg) && is_aligned(log_weights);
    outputs_aligned = is_aligned(d_neg) && (!wants_log_q || is_aligned(d_log_q));
  }

  template <int V>
  __device__ __forceinline__ void load(int64_t j, T (&score)[V], T (&log_q)[V]) const {
    cw_cuda::load<V>(neg + j, score);
    if (log_weights) {
      cw_cuda::load<V>(log_weights + j, log_q);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) log_q[i] = T(0);
    }
    if (column_scale) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const T scale = column_scale[j + i];
        score[i] *= row_scale * scale;
        if (row_scale < T(0) || scale < T(0)) log_q[i] = -infinity<T>();
      }
    }
    if (curve_values) {
#pragma unroll
      for (int i = 0; i < V; ++i) log_q[i] = curve_log_weight(curve, curve_values, score[i], pos, log_q[i]);
    }
  }
  __device__ __forceinline__ T extra(int64_t k) const { return to_compute(extra_scores[k]); }

  __device__ __forceinline__ void set_pos(T d) const { *d_pos = d; }
  __device__ __forceinline__ void set_extra(int64_t k, T d) const { d_extra[k] = d; }
  template <int V>
  __device__ __forceinline__ void set(int64_t j, const T (&d)[V]) const {
    store<V>(d, d_neg + j);
  }
  template <int V>
  __device__ __forceinline__ void set_log_q(int64_t j, const T (&d)[V]) const {
    store<V>(d, d_log_q + j);
  }
};

// Threads that a multiprocessor's registers must hold: as many as go without spilling.
template <typename In>
constexpr int kResident = sizeof(In) == 4 ? 768 : 512;

// Block (32·kWarps, kRows).
template <typename In, int kWarps, int kRows>
__global__ void __launch_bounds__(kWarps* kWarp* kRows, kResident<In> / (kWarps * kWarp * kRows))
    scores_two_pass_kernel(const ScoresTask<In> task, const Parameters<typename Compute<In>::type> common) {
  using T = typename Compute<In>::type;
  static_assert(kWarps == 1 || kRows == 1, "rows that share a block must not meet at its barrier");
  __shared__ TeamScratch<T, kWarps> scratch[kRows];
  const int64_t b = int64_t(blockIdx.x) * kRows + threadIdx.y;
  if (b >= task.rows) return;
  const Parameters<T> p = row_parameters(task, common, b);
  walk_row<kWarps>(ScoreRow<In>(task, b), b, p, task.with_gradients, task.out, scratch[threadIdx.y]);
}

template <typename In, int kWarps, int kRows>
cudaError_t launch_two_pass(const ScoresTask<In>& task, const Parameters<typename Compute<In>::type>& p,
                        cudaStream_t stream) {
  const int64_t blocks = (task.rows + kRows - 1) / kRows;
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  return launch_kernel(scores_two_pass_kernel<In, kWarps, kRows>, unsigned(blocks), dim3(kWarps * kWarp, kRows), 0, stream,
                       task, p);
}

}  // namespace

template <typename In>
cudaError_t launch_scores(const ScoresTask<In>& task, cudaStream_t stream) {
  if (task.rows == 0) return cudaSuccess;
  const auto p = make_parameters<typename Compute<In>::type>(task.arguments, task.values.temperature.all);
  if constexpr (!std::is_same_v<In, double>) {
    size_t most_bytes;
    if (const auto error = most_shared_memory(&most_bytes)) return error;
    SmemPlan plan;
    if (plan_smem(task, p, most_bytes, plan)) return launch_smem(task, p, plan, stream);
  }
  return task.n <= kWarpRow ? launch_two_pass<In, 1, kRowsPerBlock>(task, p, stream)
                            : launch_two_pass<In, kBlockWarps, 1>(task, p, stream);
}

template cudaError_t launch_scores(const ScoresTask<float>&, cudaStream_t);
template cudaError_t launch_scores(const ScoresTask<double>&, cudaStream_t);
template cudaError_t launch_scores(const ScoresTask<__half>&, cudaStream_t);
template cudaError_t launch_scores(const ScoresTask<__nv_bfloat16>&, cudaStream_t);

}  // namespace cw_cuda
