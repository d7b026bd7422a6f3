// A table of items, packed for the products of dense_kernel.h and candidate_scores_kernel.h.
#pragma once

#include "dispatch.h"

namespace cw_cpu {

template <typename T>
int64_t panels_of(int64_t width) {
  return (width + ProductTask<T>::kPanel - 1) / ProductTask<T>::kPanel;
}

// For the scores and, if wanted, for the gradients of the queries.
template <typename T>
struct PackedItems {
  Scratch<T> columns, rows;

  template <typename In>
  PackedItems(const Table<In>& table, int64_t items, bool normalized, T scale, bool for_gradients) {
    constexpr int64_t kPanel = ProductTask<T>::kPanel;
    const int64_t dim = table.dim, panels = panels_of<T>(items);
    columns = scratch<T>(panels * kPanel * dim);
    if (for_gradients) rows = scratch<T>(panels_of<T>(dim) * kPanel * items);
    parallel_for(0, panels, grain(kPanel * dim), [&](int64_t begin, int64_t end) {
      CW_WITH_ISA(pack_items<In>(table, items, normalized, scale, begin, end, columns.get(), rows.get()));
    });
  }
};

}  // namespace cw_cpu
