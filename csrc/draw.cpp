// Drawn negatives as ids: negative_sampling.h has the rule.
#include "draw_arguments.h"
#include "negative_sampling.h"

namespace cw_ext {

namespace {

Tensor draw_negatives(int64_t rows, int64_t num_items, CW_DRAWS_PARAMETERS) {
  const Draws draws = CW_DRAWS(num_items, rows, seed);
  const Tensor out = empty_large({rows, num_negatives}, options_of(seed, kInt));
  if (rows == 0) return out;
  backend::draw(draws, out);
  return out;
}

// A row of words per counter, for a test that the generator is Philox.
Tensor philox_words(const Tensor& counters, int64_t key) {
  CW_CHECK_VALUE(counters.is_cpu() && counters.dim() == 2 && counters.size(1) == 4,
                 "counters must be [R, 4] on the CPU, got ", counters.sizes());
  check_type(counters, kLong, "counters");
  const Tensor from = as_contiguous(counters), out = empty(from.sizes(), options_of(from));
  const auto* const c = static_cast<const int64_t*>(from.const_data_ptr());
  auto* const to = static_cast<int64_t*>(out.mutable_data_ptr());
  for (int64_t r = 0; r < from.size(0); ++r) {
    const auto words = cw::philox<uint32_t>(uint32_t(c[4 * r]), uint32_t(c[4 * r + 1]), uint32_t(c[4 * r + 2]),
                                            uint32_t(c[4 * r + 3]), uint64_t(key));
    for (int k = 0; k < 4; ++k) to[4 * r + k] = words.x[k];
  }
  return out;
}

}  // namespace

CW_OPS(
  // The negatives of rows first_row, first_row + 1, …, on the device of the seed: int32 [rows, num_negatives].
  m.def("draw_negatives(int rows, int num_items, " CW_DRAWS_SCHEMA ") -> Tensor");
  m.def("philox_words(Tensor counters, int key) -> Tensor");
  m.impl("philox_words", TORCH_BOX(&philox_words));)

CW_KERNELS(m.impl("draw_negatives", TORCH_BOX(&draw_negatives));)

}  // namespace cw_ext
