// From embeddings, where all rows share their negatives.
#pragma once

#include "backend.h"

namespace cw_ext {

// Which shared negatives a row leaves out, as if they did not exist: its own positive and its query's known positives. The
// columns of an item are a linked list: the item's first column, then next_column[column], until −1.
struct Exclusion {
  MaybeTensor first_column;  // CUDA: [I] int32, by item. The CPU: a table by hash, as cpu/columns_by_item.h has it
  MaybeTensor next_column;   // [N] int32; both undefined if nothing is left out, or on the CPU for a catalogue
  History history;
  bool catalogue = false;    // each column's item is the column itself, and rows leave some out
};

struct SharedNegativesCall : QueryCall {
  MaybeTensor neg_ids;  // [N] int64
  MaybeTensor log_q;    // [B, N] T, or undefined; rows may have any stride
  Exclusion exclusion;
  MaybeTensor shared_coefficients;  // [B, N] T; on CUDA, for tables in bf16, bf16. With gradients, this one or the next
  MaybeTensor negative_sums;        // [N, D] T, zeros: nothing of size B·N is kept then. To row n is added, over the rows b,
                                    //           scale · dloss/dscore[b, n] · row_factor[b] · row b of unit_queries
  MaybeTensor row_factor;           // [B] T, or undefined: 1
  bool bf16_products;               // products of fp32 numbers may be of numbers rounded to bf16
};

}  // namespace cw_ext

namespace CW_BACKEND {
void shared_negatives(const cw_ext::SharedNegativesCall& call);
// An exclusion without its history, for these ids [N] int64 of shared negatives, all in range or −1.
cw_ext::Exclusion columns_by_item(const Tensor& ids, int64_t num_items);
// ids [I] = 0, 1, …, I − 1, int64: the whole catalogue as shared negatives; and an exclusion without its history.
struct Catalogue {
  MaybeTensor ids;
  cw_ext::Exclusion columns;
};
Catalogue catalogue(int64_t num_items, const cw_ext::Device& device);
}  // namespace CW_BACKEND
