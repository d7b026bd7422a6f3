// A row of scores that stays in shared memory from its one read to its one write, for the loss's common forms.
#pragma once

#include "scores_two_pass.cuh"

namespace cw_cuda {

namespace {

// The forms without external weights in which an element's term takes one exponential and all slopes are 1/τ: the
// default, sigmoid weights with ρ = τ, and no weights. Others go through walk_row().
enum class Form { logistic, unweighted };

template <Form kForm, typename T>
CW_INLINE T exponent_of(T score, T pos, const Parameters<T>& p) {
  constexpr Weighting kWeighting = kForm == Form::logistic ? Weighting::sigmoid : Weighting::none;
  return mass(score, pos, T(0), kWeighting, Surrogate::exp, p).exponent;
}

// The term of a score below +∞, relative to the row's largest exponent.
template <Form kForm, typename T>
CW_INLINE T term_of_score(T score, T pos, T max, T e_max, const Parameters<T>& p) {
  if constexpr (kForm == Form::logistic) {
    return logistic_term(score, pos, max, e_max, p);
  } else {
    return exp_nonpositive((score - pos) * p.inv_tau - max);
  }
}

constexpr int kSmemWarps = 16;  // of a row, at most
constexpr int kSmemRows = 4;    // of a block, where each has a single warp

// `x` of all threads of a row put together by `join`, to each of them. `scratch` [kSmemWarps] is shared.
template <bool kOneWarp, typename T, typename Join>
__device__ __forceinline__ T joined_over_row(T x, T neutral, T* scratch, Join&& join) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = join(x, __shfl_xor_sync(kAllLanes, x, offset));
  if constexpr (!kOneWarp) {
    const int lane = int(threadIdx.x) % kWarp;
    if (lane == 0) scratch[threadIdx.x / kWarp] = x;
    __syncthreads();
    const int other = lane % kSmemWarps;
    x = other < int(blockDim.x) / kWarp ? scratch[other] : neutral;
#pragma unroll
    for (int offset = kSmemWarps / 2; offset > 0; offset /= 2) {
      x = join(x, __shfl_xor_sync(kAllLanes, x, offset));
    }
  }
  return x;
}

// The part of a row that one thread alone reads, keeps and writes. It goes in turns of kVec scores:
// neighbours in the row where they can move in one instruction (kVectors), else `threads` apart, so that the threads of a
// warp still read neighbours. `kept` holds what was read, later the terms, 16 bytes next to the same 16 bytes of the
// neighbours.
template <typename In>
struct OwnScores {
  using T = typename Compute<In>::type;
  using KeptType = typename Kept<In>::type;
  static constexpr int kVec = kVectorBytes / int(sizeof(In));
  static constexpr int kPiece = kVectorBytes / int(sizeof(T));
  static constexpr int kPieces = kVec / kPiece;
  // Turns that are read before the first is used. Without vectors a turn is kVec loads, each with its own address.
  static constexpr int kInFlight = 4;
  template <bool kVectors>
  static constexpr int kBatch = kVectors ? kInFlight : 1;
  static constexpr bool kMayBeScaled = std::is_same_v<In, T>;  // products come in the compute type

  int n;
  int threads;
  int turns;
  unsigned char* kept;

  __device__ OwnScores(int n, unsigned char* kept)
      : n(n), threads(int(blockDim.x)), turns(turns_of(n, threads)), kept(kept) {}

  __host__ __device__ static int turns_of(int64_t n, int threads) {
    return int((n + int64_t(threads) * kVec - 1) / (int64_t(threads) * kVec));
  }
  // Room for whole batches.
  static size_t bytes(int64_t n, int threads) {
    const int turns = (turns_of(n, threads) + kInFlight - 1) / kInFlight * kInFlight;
    return size_t(turns) * threads * kVec * sizeof(T);
  }

  // The place in the row of score v of a turn; may lie past the end.
  template <bool kVectors>
  __device__ __forceinline__ int place(int turn, int v) const {
    return kVectors ? (turn * threads + int(threadIdx.x)) * kVec + v : (turn * kVec + v) * threads + int(threadIdx.x);
  }
  __device__ __forceinline__ Chunk<T, kPiece>& piece(int turn, int i) const {
    return reinterpret_cast<Chunk<T, kPiece>*>(kept)[(turn * kPieces + i) * threads + int(threadIdx.x)];
  }
  // The last place where kVec (or, without vectors, one) can be read.
  template <bool kVectors>
  __device__ __forceinline__ int within(int j) const {
    const int last = n - (kVectors ? kVec : 1);
    return j < last ? j : last;
  }

  template <bool kVectors>
  __device__ __forceinline__ Chunk<In, kVec> read(const In* row, int turn) const {
    Chunk<In, kVec> chunk;
    if constexpr (kVectors) {
      chunk = load_chunk<kVec>(row + within<true>(place<true>(turn, 0)));
    } else {
#pragma unroll
      for (int v = 0; v < kVec; ++v) chunk.x[v] = row[within<false>(place<false>(turn, v))];
    }
    return chunk;
  }

  struct Read {
    T highest;  // NaN where a score is
    int masked;
  };

  // Reads and keeps the scores. Past the end of the row they are −∞, which has no mass. `scales` [N] may be null, as in
  // ScoresTask. Neither the loads nor what uses them has a condition around it: with one, the compiler makes each load wait
  // for the one before.
  template <bool kVectors>
  __device__ __forceinline__ Read read_all(const In* row, const T* scales, T row_scale) const {
    T highest = -infinity<T>();
    int masked = 0;
#pragma unroll 1
    for (int first = 0; first < turns; first += kBatch<kVectors>) {
      Chunk<In, kVec> chunk[kBatch<kVectors>];
#pragma unroll
      for (int r = 0; r < kBatch<kVectors>; ++r) chunk[r] = read<kVectors>(row, first + r);
#pragma unroll
      for (int r = 0; r < kBatch<kVectors>; ++r) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          Chunk<T, kPiece> own;
#pragma unroll
          for (int v = 0; v < kPiece; ++v) {
            const bool inside = place<kVectors>(first + r, i * kPiece + v) < n;
            own.x[v] = inside ? to_compute(chunk[r].x[i * kPiece + v]) : -infinity<T>();
          }
          if constexpr (kMayBeScaled) {
            if (scales) masked += scale_piece<kVectors>(own, scales, row_scale, first + r, i);
          }
#pragma unroll
          for (int v = 0; v < kPiece; ++v) highest = max_or_nan(highest, own.x[v]);
          piece(first + r, i) = own;
        }
      }
    }
    return {highest, masked};
  }

  // The scores of a piece times their scales; −∞ for a masked one. Returns how many are masked.
  template <bool kVectors>
  __device__ __forceinline__ int scale_piece(Chunk<T, kPiece>& scores, const T* scales, T row_scale, int turn,
                                             int i) const {
    int masked = 0;
#pragma unroll
    for (int v = 0; v < kPiece; ++v) {
      const int j = place<kVectors>(turn, i * kPiece + v);
      const T scale = scales[within<false>(j)];
      const bool out = row_scale < T(0) || scale < T(0);
      masked += out && j < n;
      scores.x[v] = out ? -infinity<T>() : scores.x[v] * (row_scale * scale);
    }
    return masked;
  }

  // Puts each score's term in its place; returns their sum.
  template <typename Term>
  __device__ __forceinline__ T replace_all(Term&& term) const {
    T sum = T(0);
#pragma unroll 2
    for (int i = 0; i < turns * kPieces; ++i) {
      Chunk<T, kPiece> own = piece(0, i);
#pragma unroll
      for (int v = 0; v < kPiece; ++v) {
        own.x[v] = term(own.x[v]);
        sum += own.x[v];
      }
      piece(0, i) = own;
    }
    return sum;
  }

  // How many of the scores are above the threshold; −∞ is not.
  __device__ __forceinline__ int count_above(T threshold) const {
    int count = 0;
#pragma unroll 2
    for (int i = 0; i < turns * kPieces; ++i) {
      const Chunk<T, kPiece> own = piece(0, i);
#pragma unroll
      for (int v = 0; v < kPiece; ++v) count += own.x[v] > threshold;
    }
    return count;
  }

  // to [N] = value(what is kept).
  template <bool kVectors, typename Value>
  __device__ __forceinline__ void write_all(KeptType* to, Value&& value) const {
#pragma unroll 2
    for (int turn = 0; turn < turns; ++turn) {
      T own[kVec];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const Chunk<T, kPiece> kept_piece = piece(turn, i);
#pragma unroll
        for (int v = 0; v < kPiece; ++v) own[i * kPiece + v] = value(kept_piece.x[v]);
      }
      if constexpr (kVectors) {
        if (place<true>(turn, 0) < n) store<kVec>(own, to + place<true>(turn, 0));
      } else {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          const int j = place<false>(turn, v);
          if (j < n) from_compute(own[v], to[j]);
        }
      }
    }
  }
};

// Block (32·warps, rows); with kOneWarp rows share a block, else there is one. Dynamic shared memory: what each row
// keeps.
template <typename In, Form kForm, bool kOneWarp>
__global__ void __launch_bounds__((kOneWarp ? kSmemRows : kSmemWarps) * kWarp, kOneWarp ? 8 : 2)
    scores_smem_kernel(const ScoresTask<In> task, const Parameters<typename Compute<In>::type> common, int64_t bytes_per_row) {
  using T = typename Compute<In>::type;
  constexpr int kRows = kOneWarp ? kSmemRows : 1;
  __shared__ T maxima[kSmemWarps];
  __shared__ T sums[kSmemWarps];
  __shared__ T moments[kSmemWarps];
  __shared__ int masks[kSmemWarps];
  __shared__ int counts[kSmemWarps];
  __shared__ RowPlan<T> plans[kRows];
  const int64_t b = int64_t(blockIdx.x) * kRows + threadIdx.y;
  if (b >= task.rows) return;
  const int rank = int(threadIdx.x);
  const OwnScores<In> own(int(task.n), dynamic_shared + threadIdx.y * bytes_per_row);
  const In* const neg = task.neg + b * task.neg_stride;
  typename Kept<In>::type* const d_neg = task.d_neg + b * task.n;
  const bool vectors = is_aligned(neg) && is_aligned(d_neg) && task.n % OwnScores<In>::kVec == 0;
  const T pos = to_compute(task.pos[b * task.pos_stride]);
  const In* const extra = task.extra + b * task.extra_stride;

  const Parameters<T> p = row_parameters(task, common, b);
  const bool wants_temperature = task.with_gradients && task.values.temperature.rows != nullptr;

  const bool scaled = OwnScores<In>::kMayBeScaled && task.column_scale != nullptr;
  const T row_scale = scaled ? task.row_scale[b] : T(1);
  const auto read = vectors ? own.template read_all<true>(neg, task.column_scale, row_scale)
                            : own.template read_all<false>(neg, task.column_scale, row_scale);
  const T highest = joined_over_row<kOneWarp>(read.highest, -infinity<T>(), maxima,
                                              [](T x, T y) { return max_or_nan(x, y); });
  int masked = 0;
  if (scaled) masked = joined_over_row<kOneWarp>(read.masked, 0, masks, [](int x, int y) { return x + y; });
  int above = 0;
  if (task.out.above) {
    above = own.count_above(T(task.values.threshold.at(b)));
    above = joined_over_row<kOneWarp>(above, 0, counts, [](int x, int y) { return x + y; });
  }
  const bool non_finite = !(highest < infinity<T>());
  LogSum<T> negatives = no_mass<T>();
  T moment = T(0);  // Σ term·d
  if (!non_finite && highest > -infinity<T>()) {
    negatives.max = exponent_of<kForm>(highest, pos, p);
    const T max = negatives.max, e_max = exp_(max);
    const auto term_of = [&](T score) { return term_of_score<kForm>(score, pos, max, e_max, p); };
    if (wants_temperature) {
      negatives.sum = own.replace_all([&](T score) {
        const T own_term = term_of(score);
        moment += own_term == T(0) ? T(0) : own_term * (score - pos);
        return own_term;
      });
      moment = joined_over_row<kOneWarp>(moment, T(0), moments, [](T x, T y) { return x + y; });
    } else {
      negatives.sum = own.replace_all(term_of);
    }
    negatives.sum = joined_over_row<kOneWarp>(negatives.sum, T(0), sums, [](T x, T y) { return x + y; });
  }

  // The first warp takes the extra positives, and its first thread computes the plan for all.
  if (rank < kWarp) {
    RowStatistics<T> s = no_statistics<T>();
    if (task.m > 0) {
#pragma unroll 1
      for (int64_t k = rank; k < task.m; k += kWarp) add_positive(s, to_compute(extra[k]), pos, p);
      s = merged_over_warp(s);
    }
    if (rank == 0) {
      s.negatives = negatives;
      s.masked = masked + (task.excluded ? task.excluded[b] : 0);
      s.non_finite |= non_finite;
      plans[threadIdx.y] =
          plan_row(s, pos, task.n, false, task.values.at(b), p);
      write_row(task.out, b, plans[threadIdx.y].result);
      if (task.out.above) task.out.above[b] = above;
    }
  }
  if constexpr (kOneWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  if (!task.with_gradients) return;

  const RowPlan<T>& plan = plans[threadIdx.y];
  const bool regular = plan.regular;
  const T factor = plan.negatives_unit * p.inv_tau, filler = plan.filler;
  const auto gradient_of = [=](T term) { return regular ? term * factor : filler; };
  vectors ? own.template write_all<true>(d_neg, gradient_of) : own.template write_all<false>(d_neg, gradient_of);
  if (rank >= kWarp) return;
  T by_log_tau = T(0);
#pragma unroll 1
  for (int64_t k = rank; k < task.m; k += kWarp) {
    const T score = to_compute(extra[k]);
    task.d_extra[b * task.m + k] = positive_gradient(score, pos, plan, p);
    if (wants_temperature) by_log_tau += positive_temperature_part(score, pos, plan, p);
  }
  if (wants_temperature && regular) {
    // d φ / d log τ of a negative is −d/τ, and its weight is detached or 1.
    by_log_tau = Team<1>::sum(by_log_tau, static_cast<T*>(nullptr)) - plan.negatives_unit * moment * p.inv_tau;
    if (rank == 0) write_temperature(task.out, b, plan.result.by_temperature + by_log_tau * p.inv_tau);
  }
  if (rank == 0) {
    // All slopes are 1/τ, so that the gradients of the other scores add up to this.
    const T by_log_c = plan.positives_unit != T(0) ? plan.result.by_log_c : T(0);
    const T total = (plan.result.by_log_a + by_log_c) * p.inv_tau;
    task.d_pos[b] = regular ? plan.result.by_pos - total : filler;
  }
}

// Whether the kernel takes the task: sets the form, the block and the shared memory of a row.
struct SmemPlan {
  Form form;
  unsigned warps;
  size_t bytes_per_row;
};

template <typename In>
bool plan_smem(const ScoresTask<In>& task, const Parameters<typename Compute<In>::type>& p, size_t most_bytes,
                   SmemPlan& plan) {
  constexpr int64_t kPerWarp = kWarp * OwnScores<In>::kVec * OwnScores<In>::kInFlight;
  if (task.column_scale != nullptr && !OwnScores<In>::kMayBeScaled) return false;
  if (task.log_q != nullptr || task.curve.log_weights != nullptr) return false;
  if (p.surrogate != Surrogate::exp || p.normalize_weights) return false;
  if (p.weighting != Weighting::none && !(p.logistic && p.detach_weights)) return false;
  plan.form = p.weighting == Weighting::none ? Form::unweighted : Form::logistic;
  const int64_t warps = (task.n + kPerWarp - 1) / kPerWarp;
  plan.warps = unsigned(warps < kSmemWarps ? warps : kSmemWarps);
  plan.bytes_per_row = OwnScores<In>::bytes(task.n, int(plan.warps * kWarp));
  return plan.bytes_per_row <= most_bytes;
}

template <typename In>
cudaError_t launch_smem(const ScoresTask<In>& task, const Parameters<typename Compute<In>::type>& p,
                            const SmemPlan& plan, cudaStream_t stream) {
  const bool logistic = plan.form == Form::logistic, one_warp = plan.warps == 1;
  const auto kernel = one_warp ? (logistic ? scores_smem_kernel<In, Form::logistic, true>
                                           : scores_smem_kernel<In, Form::unweighted, true>)
                               : (logistic ? scores_smem_kernel<In, Form::logistic, false>
                                           : scores_smem_kernel<In, Form::unweighted, false>);
  const int rows = one_warp ? kSmemRows : 1;
  const int64_t blocks = (task.rows + rows - 1) / rows;
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  const size_t bytes = plan.bytes_per_row * rows;
  if (const auto error = allow_shared_memory(kernel, bytes)) return error;
  return launch_kernel(kernel, unsigned(blocks), dim3(plan.warps * kWarp, rows), bytes, stream, task, p,
                       int64_t(plan.bytes_per_row));
}

}  // namespace

}  // namespace cw_cuda
