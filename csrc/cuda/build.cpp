// How this library was built: CW_CUDA_VERSION and CW_CUDA_ARCHS, which the build defines.
#include <string>
#include <tuple>

#include "../tensor.h"

namespace cw_cuda {

namespace {

std::tuple<std::string, std::string> cuda_build() { return {CW_CUDA_VERSION, CW_CUDA_ARCHS}; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cw_ext, m) { m.def("cuda_build() -> (str version, str archs)"); }
STABLE_TORCH_LIBRARY_IMPL(cw_ext, CompositeExplicitAutograd, m) { m.impl("cuda_build", TORCH_BOX(&cuda_build)); }

}  // namespace cw_cuda
