// The gradient of the item table as the rows that a batch names. On CUDA the table is made compact before forward
// (cw_ext/sparse_rows.py), so these ops are the CPU's alone.
#pragma once

#include "../calls.h"

namespace cw_ext {
struct SparseRows {
  MaybeTensor ids;     // [U] int64, sorted and distinct
  MaybeTensor values;  // [U, D] in the dtype of items
};
}  // namespace cw_ext

namespace cw_cpu {
// The calls are those of item_gradient() and sampled_item_gradient(), without `gradient` and, as their pairs are not sorted,
// without `pair_keys` and `pair_ends`.
cw_ext::SparseRows sparse_item_gradient(const cw_ext::ItemGradientCall& call);
cw_ext::SparseRows sparse_sampled_item_gradient(const cw_ext::SampledItemGradientCall& call);
}  // namespace cw_cpu
