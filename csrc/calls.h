// What the ops hand to a backend: tensors checked, flattened and allocated in the ops (csrc/*.cpp). T is the compute dtype:
// fp64 for fp64 inputs, else fp32. An undefined tensor is an argument that was not given, or a result that is not wanted.
#pragma once

#include "kernel_types.h"
#include "tensor.h"

namespace cw_ext {

// A quantity per row: one value for all (rows undefined), or rows [B] of T.
struct PerRow {
  MaybeTensor rows;
  double value;
};

// The row values of loss_fields.h.
struct RowTensors {
#define CW_VALUE(name) PerRow name;
  CW_ROW_VALUES(CW_VALUE)
#undef CW_VALUE
};

struct CurveTensors {
  MaybeTensor log_weights;  // [B, K] T, or undefined; rows may have any stride
  double low;
  double high;
  bool on_margin;
};

// What a call asks of the loss.
struct Loss {
  LossArguments arguments;
  RowTensors values;
  CurveTensors curve;
  bool with_curve_gradient;
};

struct RowOutputs {
  MaybeTensor loss;      // [B] T
  MaybeTensor live;      // [B] bool
  MaybeTensor above;     // [B] int64, only where wanted
  MaybeTensor d_log_q;   // [B, N] T, only where wanted
  MaybeTensor d_values;  // [kRowValues, B] T
  MaybeTensor d_curve;   // [B, K] T, only where wanted
};

// Known positives, CSR: those of query u are known[starts[u]:starts[u + 1]], sorted and distinct. Undefined: there are none.
struct History {
  MaybeTensor query_ids;  // [B] int64
  MaybeTensor starts;     // [Q + 1] int64
  MaybeTensor known;      // [P] int32
};

// Drawn negatives: negative_sampling.h has the rule.
struct Draws {
  MaybeTensor seed;  // [] int64
  int64_t first_row;
  History history;  // with candidates, known holds positions in `candidates`
  int64_t num_drawable;  // I, or C
  int64_t n;             // per row
  MaybeTensor thresholds;    // [I or C] uint32, these four for popular negatives only: see NegativeSource
  MaybeTensor aliases;       // [I or C] int32
  MaybeTensor cumulative;    // [I or C] int64
  MaybeTensor known_shares;  // [P + 1] int64, or undefined
  MaybeTensor log_weights;   // [I] T, or undefined: log q of each item when it is drawn
  MaybeTensor candidates;    // [C] int32, or undefined
  MaybeTensor pos_ids;       // [B] int64, or undefined: rows that draw nothing have −1
};

// From scores. Rows may have any stride; within a row elements are contiguous.
struct ScoresCall {
  Loss loss;
  MaybeTensor pos;    // [B]
  MaybeTensor neg;    // [B, N]
  MaybeTensor extra;  // [B, M], M may be 0, or undefined
  MaybeTensor log_q;  // [B, N] T, or undefined
  MaybeTensor row_scale;     // [B] T, both or none: the negatives' scores are neg · row_scale · column_scale; a negative
  MaybeTensor column_scale;  // [N] T               factor masks out. Only CUDA's embeddings set them
  MaybeTensor excluded;      // [B] int32, or undefined: how many scores of −∞ are not negatives. Only CUDA's embeddings set it
  bool with_gradients;
  RowOutputs out;
  MaybeTensor d_pos;    // [B] T      these three only with_gradients
  MaybeTensor d_neg;    // [B, N] T; on CUDA, for scores in bf16, bf16
  MaybeTensor d_extra;  // [B, M] T
};

// From embeddings, without the negatives. All contiguous.
struct QueryCall {
  Loss loss;
  MaybeTensor queries;    // [B, D]
  MaybeTensor items;      // [I, D]
  MaybeTensor pos_ids;    // [B] int64
  MaybeTensor extra_ids;  // [B, M] int64, M may be 0
  double scale;     // of the similarity
  bool normalized;  // cosine
  bool with_gradients;
  RowOutputs out;
  MaybeTensor d_queries;     // [B, D] T    these three only with_gradients
  MaybeTensor unit_queries;  // [B, D] T    the queries, divided by their norms where normalized
  MaybeTensor coefficients;  // [B, W] T    dloss/dscore · scale: positive, extra positives and, where the negatives are the
                                 //             row's own, those: W = 1 + M + N, else 1 + M
                                 //             (EmbeddingsCall: if dense, W = I)
};

// Each row with its own negatives. If dense (dense_rule.h), item by item: a coefficient is the sum of all that a row takes the
// item for, and the last two tensors are of no rows. Else, on the CPU, the coefficients are in the order of
// cpu/bucketed_pairs.h, which the last two tensors describe.
struct EmbeddingsCall : QueryCall {
  bool dense = false;
  MaybeTensor neg_ids;    // [B, N] int32 or int64
  MaybeTensor log_q;      // [B, N] T, or undefined; rows may have any stride
  MaybeTensor pair_keys;  // [B, 1 + M + N] int16      else empty
  MaybeTensor pair_ends;  // [blocks, buckets] int32   else empty
};

// Sampled. Negatives are drawn again wherever they are needed, for a bounded part of the batch at a time.
struct SampledCall {
  EmbeddingsCall rows;  // without neg_ids, log_q, pair_keys and pair_ends; coefficients in the order of the pairs, or
  Draws draws;          // undefined if they are not kept
};

// Scores without a loss. All contiguous.
struct CandidateScoresCall {
  MaybeTensor queries;  // [B, D]
  MaybeTensor items;    // [I, D]
  MaybeTensor ids;      // [B, K] int32 or int64
  double scale;     // of the similarity
  bool normalized;  // cosine
  MaybeTensor out;  // [B, K] T
};

// How CUDA sums per item: as it chooses, by atomic additions, or over sorted pairs.
enum class ItemSums : int { chosen, atomic, sorted };

// The gradient of the item table: to item id(p) goes, for each pair p of the [B, W] coefficients, coefficients[p] times
// row p / W of `sources`; and, where rows share their negatives (shared_ids defined), to item shared_ids[n] the sum over
// rows b of scale · shared_coefficients[b, n] · row b of `sources`. Then through the normalisation, once per item.
struct ItemGradientCall {
  bool dense = false;        // coefficients [B, I], as in EmbeddingsCall: the ids are in them
  MaybeTensor sources;       // [B, D] T
  MaybeTensor coefficients;  // [B, W] T, W = 1 + M + N or, with shared negatives, 1 + M
  MaybeTensor pair_keys;     // as in EmbeddingsCall; empty with shared negatives
  MaybeTensor pair_ends;
  MaybeTensor items;         // [I, D]
  MaybeTensor pos_ids;       // [B] int64
  MaybeTensor extra_ids;     // [B, M] int64, M may be 0
  MaybeTensor neg_ids;       // [B, N] int32 or int64, or undefined
  MaybeTensor shared_ids;    // [N] int64, or undefined
  MaybeTensor shared_coefficients;  // [B, N] T, or bf16 as the forward pass left it; or undefined
  MaybeTensor initial;  // [I, D] T, or undefined: sums to add to
  double scale;     // of the similarity
  bool normalized;  // cosine
  ItemSums sums;
  MaybeTensor gradient;  // [I, D] in the dtype of items, uninitialised
};

// The same for sampled.
struct SampledItemGradientCall {
  ItemGradientCall gradient;  // without neg_ids and what is shared; coefficients [B, 1 + M + N] in the order of the pairs, or
  EmbeddingsCall rows;        // undefined: then they are computed again from these, without d_queries and unit_queries
  Draws draws;
};

}  // namespace cw_ext

// What a library's backend does; each library has one.
#ifdef CW_CUDA
#define CW_BACKEND cw_cuda
#else
#define CW_BACKEND cw_cpu
#endif

namespace CW_BACKEND {
void scores(const cw_ext::ScoresCall& call);
void embeddings(const cw_ext::EmbeddingsCall& call);
void candidate_scores(const cw_ext::CandidateScoresCall& call);
void item_gradient(const cw_ext::ItemGradientCall& call);
// out [rows, N] int32, uninitialised
void draw(const cw_ext::Draws& draws, const Tensor& out);
void sampled(const cw_ext::SampledCall& call);
void sampled_item_gradient(const cw_ext::SampledItemGradientCall& call);
// Room for the order of the pairs of `rows` rows, `width` each, that the CPU's forward pass leaves for the item gradient.
// Undefined on CUDA, which leaves them in the order of the rows.
Tensor pair_keys(int64_t rows, int64_t width, const Tensor& like);
Tensor pair_ends(int64_t rows, int64_t width, int64_t items, const Tensor& like);
// loss [] = the sum of the rows' losses, over the number of live rows if `mean`; then also rescale [] = rows over live rows.
void reduce_rows(const cw_ext::RowOutputs& rows, bool mean, const Tensor& loss, const Tensor& rescale);
// out [B, ...] = x [B, ...] · factor, [B] or a single number; x in the compute dtype of out or, on CUDA, in bf16 as out,
// factor in the compute dtype; all contiguous.
void scale_rows(const Tensor& x, const Tensor& factor, const Tensor& out);
// x [B, ...] *= factor, [B] or a single number; contiguous. Where the factor is 1, x is neither read nor written.
void scale_in_place(const Tensor& x, const Tensor& factor);
}  // namespace CW_BACKEND
