// What the ops that draw negatives take: schema, parameters and checks.
#pragma once

#include <algorithm>
#include <limits>

#include "id_arguments.h"

namespace cw_ext {

#define CW_DRAWS_SCHEMA \
  CW_HISTORY_SCHEMA ", Tensor seed, SymInt first_row, int num_negatives, Tensor? thresholds, Tensor? aliases, " \
  "Tensor? cumulative, Tensor? known_shares, Tensor? log_weights, Tensor? candidates"
#define CW_DRAWS_PARAMETERS                                                                                  \
  CW_HISTORY_PARAMETERS, const Tensor &seed, int64_t first_row, int64_t num_negatives,                   \
      const OptionalTensor &thresholds, const OptionalTensor &aliases, const OptionalTensor &cumulative,     \
      const OptionalTensor &known_shares, const OptionalTensor &log_weights, const OptionalTensor &candidates
#define CW_DRAWS(num_items, rows, like)                                                                         \
  draws_of(history(query_ids, starts, known, rows, like), seed, first_row, num_items, rows, num_negatives, thresholds, \
           aliases, cumulative, known_shares, log_weights, candidates, like)

// Kernels read the items at these ids. On CUDA they check each id themselves.
inline void check_candidates(const Tensor& candidates, int64_t num_items) {
  if (kCuda) return;
  const auto* const ids = static_cast<const int32_t*>(candidates.const_data_ptr());
  int32_t least = ids[0], most = ids[0];
  for (int64_t c = 1; c < candidates.size(0); ++c) {
    least = std::min(least, ids[c]);
    most = std::max(most, ids[c]);
  }
  CW_CHECK_INDEX(least >= 0 && most < num_items, "candidates must be in [0, ", num_items, "), got ",
                    least < 0 ? least : most);
}

inline Draws draws_of(const History& history, const Tensor& seed, int64_t first_row, int64_t num_items, int64_t rows,
               int64_t n, const OptionalTensor& thresholds, const OptionalTensor& aliases,
               const OptionalTensor& cumulative, const OptionalTensor& known_shares, const OptionalTensor& log_weights,
               const OptionalTensor& candidates, const Tensor& like) {
  CW_CHECK_VALUE(n > 0 && n <= std::numeric_limits<int32_t>::max(), "num_negatives must be in [1, 2^31), got ", n);
  CW_CHECK_VALUE(num_items > 0 && num_items <= std::numeric_limits<int32_t>::max(),
                    "negatives are drawn from 1 to 2^31 - 1 items, got ", num_items);
  check_shape(seed, {}, "seed", like);
  check_type(seed, kLong, "seed");
  CW_CHECK_VALUE(first_row >= 0 && first_row <= std::numeric_limits<int64_t>::max() - rows,
                    "first_row must be at least 0, and the last row below 2^63, got ", first_row);
  Draws draws{seed, first_row, history, num_items, n, {}, {}, {}, {}, {}, {}, {}};
  if (candidates) {
    CW_CHECK_VALUE(candidates->dim() == 1 && candidates->size(0) > 0, "candidates must be [C], got ",
                      candidates->sizes());
    check_shape(*candidates, {candidates->size(0)}, "candidates", like);
    check_type(*candidates, kInt, "candidates");
    draws.candidates = as_contiguous(*candidates);
    draws.num_drawable = candidates->size(0);
    check_candidates(draws.candidates, num_items);
  }
  CW_CHECK_VALUE(thresholds.has_value() == aliases.has_value() && cumulative.has_value() == aliases.has_value(),
                    "thresholds, aliases and cumulative go together");
  if (thresholds) {
    const int64_t drawable = draws.num_drawable;
    check_shape(*thresholds, {drawable}, "thresholds", like);
    check_type(*thresholds, kUInt32, "thresholds");
    check_shape(*aliases, {drawable}, "aliases", like);
    check_type(*aliases, kInt, "aliases");
    check_shape(*cumulative, {drawable}, "cumulative", like);
    check_type(*cumulative, kLong, "cumulative");
    draws.thresholds = as_contiguous(*thresholds);
    draws.aliases = as_contiguous(*aliases);
    draws.cumulative = as_contiguous(*cumulative);
    if (known_shares && history.known.defined()) {
      check_shape(*known_shares, {history.known.size(0) + 1}, "known_shares", like);
      check_type(*known_shares, kLong, "known_shares");
      draws.known_shares = as_contiguous(*known_shares);
    }
  }
  if (log_weights) {
    check_shape(*log_weights, {num_items}, "log_weights", like);
    draws.log_weights = as_contiguous(*log_weights);
  }
  return draws;
}

}  // namespace cw_ext
