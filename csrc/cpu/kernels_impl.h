// The CPU kernels, compiled once per instruction set. No standard containers or algorithms here, whose instantiations for
// one instruction set the linker could hand to another.
//
// Included by kernels_*.cpp with CW_ISA set to the namespace to define, and CW_VECTOR_BYTES to the width of a register.
#include "distinct_ids_kernel.h"
#include "draw_kernel.h"
#include "embeddings_kernel.h"
#include "item_gradient_kernel.h"
#include "product_kernel.h"
#include "scores_kernel.h"
#include "shared_negatives_kernel.h"

namespace cw_cpu {
namespace CW_ISA {

#define CW_INSTANTIATE(In)                                                                                           \
  template void scores<In>(const ScoresTask<In>&, int64_t, int64_t, Compute<In>::type*);                             \
  template void scale_rows<In>(const ScaleRowsTask<In>&, int64_t, int64_t);                                          \
  template void embeddings<In, int32_t>(                                                                             \
      const EmbeddingsTask<In, int32_t>&, int64_t, int64_t, Compute<In>::type*, const In**, Compute<In>::type*);     \
  template void embeddings<In, int64_t>(                                                                             \
      const EmbeddingsTask<In, int64_t>&, int64_t, int64_t, Compute<In>::type*, const In**, Compute<In>::type*);     \
  template void pack_shared<In>(const SharedTask<In>&, int64_t, int64_t);                                            \
  template void shared_negatives<In>(const SharedTask<In>&, int64_t, int64_t, Compute<In>::type*);                   \
  template void inverse_norms<In>(const In*, int64_t, Compute<In>::type*, int64_t, int64_t);                         \
  template void item_gradient<In>(const ItemGradientTask<In>&, int64_t, int64_t, Compute<In>::type*);

CW_INSTANTIATE(float)
CW_INSTANTIATE(double)
CW_INSTANTIATE(Half)
CW_INSTANTIATE(BFloat16)
template void look_up<float>(const float*, const int32_t*, int64_t, float*);
template void look_up<double>(const double*, const int32_t*, int64_t, double*);
template void find_places<int32_t>(const IdPlaces&, const int32_t*, int64_t, int64_t*);
template void find_places<int64_t>(const IdPlaces&, const int64_t*, int64_t, int64_t*);
template void product<float>(const ProductTask<float>&, int64_t, int64_t);
template void product<double>(const ProductTask<double>&, int64_t, int64_t);

}  // namespace CW_ISA
}  // namespace cw_cpu
