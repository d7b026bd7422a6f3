// The Python module: build_config() and nothing else. The ops are reached through torch.ops.cw_ext.
#include <pybind11/pybind11.h>
#include <torch/version.h>

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
  py::str used = py::str(at::get_cpu_capability()).attr("lower")();
  config["cpu_capability"] = capabilities.contains(used) ? used : py::str("default");
#ifdef CW_WITH_CUDA
  config["cuda"] = true;
  config["cuda_version"] = CW_CUDA_VERSION;
  config["cuda_archs"] = CW_CUDA_ARCHS;
#else
  config["cuda"] = false;
  config["cuda_version"] = py::none();
  config["cuda_archs"] = py::none();
#endif
  config["torch"] = CW_TORCH_VERSION;
  return config;
}

}  // namespace

PYBIND11_MODULE(_C, m) { m.def("build_config", &build_config, "How the kernels were built and what they run on."); }
