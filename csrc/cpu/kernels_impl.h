// The CPU kernels, compiled once per instruction set. No standard containers or algorithms here, whose instantiations for
// one instruction set the linker could hand to another.
//
// Included by kernels_*.cpp with CW_ISA set to the namespace to define, and CW_VECTOR_BYTES to the width of a register.
#include "candidate_scores_kernel.h"
#include "dense_kernel.h"
#include "distinct_ids_kernel.h"
#include "draw_kernel.h"
#include "embeddings_kernel.h"
#include "item_gradient_kernel.h"
#include "product_kernel.h"
#include "scores_kernel.h"
#include "shared_chunks_kernel.h"
#include "shared_negatives_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

#define CW_INSTANTIATE_CHUNKS(In, Operand)                                                                           \
  template void pack_chunks<In, Operand>(const ChunkTask<In, Operand>&, int64_t, int64_t, Compute<In>::type*);       \
  template void shared_chunks<In, Operand>(const ChunkTask<In, Operand>&, int64_t, int64_t, Compute<In>::type*);     \
  template void add_chunk_sums<In, Operand>(                                                                         \
      const ChunkTask<In, Operand>&, const ChunkSums<Compute<In>::type>&, int64_t, int64_t, Operand*);
#define CW_INSTANTIATE_CANDIDATES(In, Id)                                                                            \
  template int64_t candidate_scores<In, Id>(                                                                         \
      const CandidateScoresTask<In, Id>&, const CandidateBlock&, const CandidatesScratch<In>&);                      \
  template int64_t dense_candidate_scores<In, Id>(                                                                   \
      const CandidateScoresTask<In, Id>&, int64_t, int64_t, Compute<In>::type*);
#define CW_INSTANTIATE(In)                                                                                           \
  template void scores<In>(const ScoresTask<In>&, int64_t, int64_t, Compute<In>::type*);                             \
  template void scale_rows<In>(const ScaleRowsTask<In>&, int64_t, int64_t);                                          \
  template void embeddings<In, int32_t>(                                                                             \
      const EmbeddingsTask<In, int32_t>&, int64_t, int64_t, Compute<In>::type*, const EmbeddingsScratch<In>&);       \
  template void embeddings<In, int64_t>(                                                                             \
      const EmbeddingsTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*, const EmbeddingsScratch<In>&);       \
  template bool dense<In, int32_t>(                                                                                  \
      const DenseTask<In, int32_t>&, int64_t, int64_t, Compute<In>::type*, int32_t*);                                \
  template bool dense<In, int64_t>(                                                                                  \
      const DenseTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*, int32_t*);                                \
  CW_INSTANTIATE_CANDIDATES(In, int32_t)                                                                             \
  CW_INSTANTIATE_CANDIDATES(In, int64_t)                                                                             \
  template void pack_items<In>(const Table<In>&, int64_t, bool, Compute<In>::type, int64_t, int64_t,                 \
                               Compute<In>::type*, Compute<In>::type*);                                              \
  template void finish_items<In>(const FinishItemsTask<In>&, int64_t, int64_t, Compute<In>::type*);                  \
  template void pack_shared<In>(const SharedTask<In>&, int64_t, int64_t);                                            \
  template void shared_negatives<In>(const SharedTask<In>&, int64_t, int64_t, Compute<In>::type*);                   \
  CW_INSTANTIATE_CHUNKS(In, Compute<In>::type)                                                                       \
  template void inverse_norms<In>(const In*, int64_t, Compute<In>::type*, int64_t, int64_t);                         \
  template void item_gradient<In>(const ItemGradientTask<In>&, int64_t, int64_t, Compute<In>::type*);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(Half)
CW_INSTANTIATE(BFloat16)
#if CW_VECTOR_BYTES == 64
CW_INSTANTIATE_CHUNKS(float, Pair)
CW_INSTANTIATE_CHUNKS(BFloat16, Pair)
#endif
template void look_up<float>(const float*, const int32_t*, int64_t, float*);
template void look_up<double>(const double*, const int32_t*, int64_t, double*);
template void find_places<int32_t>(const IdPlaces&, const int32_t*, int64_t, int64_t*);
template void find_places<int64_t>(const IdPlaces&, const int64_t*, int64_t, int64_t*);
template void product<float>(const ProductTask<float>&, int64_t, int64_t);
template void product<double>(const ProductTask<double>&, int64_t, int64_t);

}  // namespace CW_ISA
}  // namespace cw_cpu
