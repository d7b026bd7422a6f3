// The gradient of the item table in steps: a sum per item, to which pairs are added a part of the batch at a time, then
// its way back through the normalisation. A call here is an ItemGradientCall on all of the batch or a part of it.
#pragma once

#include "../calls.h"

namespace cw_cuda {

struct ItemTotals {
  Tensor sum;  // [I, D] T: the call's gradient itself where that has T
  bool sorts;
  bool zeros;  // nothing has been added yet
};

// Zeros or the call's `initial`, for this many pairs in all.
ItemTotals begin_totals(const cw_ext::ItemGradientCall& call, int64_t pairs);

// Adds the call's pairs and its shared negatives.
void add_pairs(const cw_ext::ItemGradientCall& call, ItemTotals& totals);

// Writes the call's gradient.
void finish_totals(const cw_ext::ItemGradientCall& call, const ItemTotals& totals);

}  // namespace cw_cuda
