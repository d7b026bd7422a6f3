// The arguments of the loss as the user gave them, for every backend; kernels turn them into cw_row.h's Parameters.
#pragma once

namespace cw_ext {

struct LossArguments {
  double temperature;
  int weighting;  // cw_row.h's Weighting
  double weight_temperature;
  bool detach_weights;
  bool normalize_weights;
  double floor;
  bool has_min_margin;
  double min_margin;
  bool has_confidence;
  double confidence_temperature;
  bool include_positive;
  int surrogate;  // cw_row.h's Surrogate
};

}  // namespace cw_ext
