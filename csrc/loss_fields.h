// The arguments of the loss, each described once. The ops' schemas and parameters (loss_arguments.h), the structs that
// carry them, the checks of their shapes and the outputs for their gradients all follow from these lists.
//
// The order is that of the tuples in cw_ext/op_inputs.py; a test compares the two.
#pragma once

// The weightings ω and the surrogates of exp(d/τ): cw_row.h has their formulas, in enums of the same order.
#define CW_WEIGHTINGS(X) X(none) X(sigmoid) X(exponential) X(linear)
#define CW_SURROGATES(X) X(exp) X(tanh) X(atan) X(relu)

// A value per row, or one for all rows; with a gradient.
#define CW_ROW_VALUES(X) \
  X(prior)               \
  X(threshold)           \
  X(temperature)

// The same for all rows, without a gradient: a number, an optional number, a flag, or a name from a list.
#define CW_LOSS_FIELDS(NUMBER, OPTIONAL, FLAG, CHOICE) \
  OPTIONAL(positive_temperature)                       \
  CHOICE(weighting, CW_WEIGHTINGS)                     \
  OPTIONAL(weight_temperature)                         \
  FLAG(detach_weights)                                 \
  FLAG(normalize_weights)                              \
  NUMBER(floor)                                        \
  OPTIONAL(min_margin)                                 \
  OPTIONAL(confidence_temperature)                     \
  FLAG(include_positive)                               \
  CHOICE(surrogate, CW_SURROGATES)                     \
  FLAG(return_above)
