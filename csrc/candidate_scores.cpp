// The scores of given items for each query, as the loss from embeddings has them, without the loss.
#include "query_arguments.h"

namespace cw_ext {

namespace {

Tensor candidate_scores(const Tensor& queries, const Tensor& items, const Tensor& ids, const Text& similarity) {
  check_tables(queries, items);
  const int64_t rows = queries.size(0);
  CW_CHECK_VALUE(ids.dim() == 2, "ids must be [B, K], got ", ids.sizes());
  check_shape(ids, {rows, ids.size(1)}, "ids", queries);
  CW_CHECK_TYPE(is_id_type(ids), "ids must be int32 or int64, got ", ids.scalar_type());
  const Similarity score = similarity_of(similarity);

  CandidateScoresCall call;
  call.queries = as_contiguous(queries);
  call.items = as_contiguous(items);
  call.ids = as_contiguous(ids);
  call.scale = score.scale;
  call.normalized = score.normalized;
  call.out = empty_large(ids.sizes(), options_of(queries, compute_type(queries)));
  if (ids.numel() == 0) return call.out;
  check_items(items);
  backend::candidate_scores(call);
  return call.out;
}

}  // namespace

CW_OPS(
  // queries [B, D], items [I, D], ids [B, K], −1 is padding. Returns [B, K] in the compute dtype, −∞ for padding.
  m.def("candidate_scores(Tensor queries, Tensor items, Tensor ids, str similarity) -> Tensor");)

CW_KERNELS(m.impl("candidate_scores", TORCH_BOX(&candidate_scores));)

}  // namespace cw_ext
