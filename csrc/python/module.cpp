// The Python module: what was built, and nothing else. It knows nothing of torch; the ops are in libraries of their own.
#include <pybind11/pybind11.h>

#include "../cpu/isa.h"

namespace py = pybind11;

namespace {

py::dict build_config() {
  py::list capabilities;
  capabilities.append("default");
#if defined(__x86_64__)
  capabilities.append("avx2");
  capabilities.append("avx512");
#endif
  py::dict config;
  config["compiler"] =
#if defined(__clang__)
      "clang " __clang_version__;
#else
      "gcc " __VERSION__;
#endif
  config["cpu_capabilities"] = capabilities;
  config["cpu_capability"] = cw_cpu::name_of(cw_cpu::isa());
  config["torch"] = CW_TORCH_VERSION;
  return config;
}

}  // namespace

PYBIND11_MODULE(_C, m) { m.def("build_config", &build_config, "How the kernels were built and what they run on."); }
