// A row of embeddings in the form that scores_two_pass.cuh walks.
#pragma once

#include "pair_ids.cuh"
#include "scores_two_pass.cuh"

namespace cw_cuda {

// `scores` [1 + M + N] gives the scores and takes the coefficients.
template <typename T>
struct EmbeddingRow {
  static constexpr int kVec = 1;
  static constexpr bool inputs_aligned = false;
  static constexpr bool outputs_aligned = false;
  static constexpr int64_t excluded = 0;
  const Pairs& pairs;
  int64_t b;
  int64_t n;
  int64_t m;
  T pos;
  RowArguments values;
  bool has_log_q;
  bool wants_log_q;
  bool wants_temperature;
  const Curve<T>& curve;
  const T* curve_values;  // [K], or null: no curve
  bool dead;  // its positive is padding
  const T* log_weights;
  T* scores;
  T* d_log_q;
  T scale;

  template <int V>
  __device__ __forceinline__ void load(int64_t j, T (&score)[V], T (&log_q)[V]) const {
    score[0] = scores[1 + m + j];
    const bool masked = dead || negative_id(pairs, b, j) < 0;
    log_q[0] = log_weight(j, score[0], masked);
  }
  __device__ __forceinline__ T log_weight(int64_t j, T score, bool masked) const {
    if (masked) return -infinity<T>();
    const T given = log_weights ? log_weights[j] : T(0);
    return curve_values ? curve_log_weight(curve, curve_values, score, pos, given) : given;
  }
  __device__ __forceinline__ T extra(int64_t k) const { return scores[1 + k]; }

  __device__ __forceinline__ void set_pos(T d) const { scores[0] = d * scale; }
  __device__ __forceinline__ void set_extra(int64_t k, T d) const { scores[1 + k] = d * scale; }
  template <int V>
  __device__ __forceinline__ void set(int64_t j, const T (&d)[V]) const {
    scores[1 + m + j] = d[0] * scale;
  }
  template <int V>
  __device__ __forceinline__ void set_log_q(int64_t j, const T (&d)[V]) const {
    d_log_q[j] = d[0];
  }
};

template <typename In, typename T>
__device__ __forceinline__ EmbeddingRow<T> embedding_row(const EmbeddingsTask<In>& task, int64_t b, T pos, T* scores) {
  const Pairs& pairs = task.pairs;
  return {pairs,
          b,
          pairs.n,
          pairs.m,
          pos,
          task.values.at(b),
          task.log_q != nullptr || task.curve.log_weights != nullptr,
          task.with_gradients && task.out.d_log_q != nullptr,
          task.with_gradients && task.values.temperature.rows != nullptr,
          task.curve,
          task.curve.of_row(b),
          pair_id(pairs, b, 0) < 0,
          task.log_q ? task.log_q + b * task.log_q_stride : nullptr,
          scores,
          task.out.d_log_q + b * pairs.n,
          task.scale};
}

}  // namespace cw_cuda
