// The CPU kernels for any machine.
#define CW_NAMESPACE cw_default
#define CW_ISA isa_default
#define CW_VECTOR_BYTES 16
#include "kernels_impl.h"
