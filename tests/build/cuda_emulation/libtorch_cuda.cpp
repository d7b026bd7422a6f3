// Stands in for libtorch_cuda, which a CPU build of torch lacks: what csrc/cuda/torch_ops.h calls of it. The device is
// the CPU, where launches run at once.
#include <cstring>
#include <vector>

#include <cuda_runtime_api.h>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/ops.h>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// A borrowed handle as a tensor.
Tensor tensor_of(AtenTensorHandle handle) {
  AtenTensorHandle own = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

}  // namespace

AOTITorchError aoti_torch_create_cuda_guard(int32_t, CUDAGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = nullptr;
  if (error == cudaSuccess) return AOTI_TORCH_SUCCESS;
  const std::string text = std::string("CUDA emulation error: ") + cudaGetErrorString(cudaError_t(error));
  *message = new char[text.size() + 1];
  std::strcpy(*message, text.c_str());
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { delete[] message; }

AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
  return aoti_torch_cpu_mm_out(out, a, b);
}

AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle sum, AtenTensorHandle a,
                                         AtenTensorHandle b, double beta, double alpha) {
  return aoti_torch_cpu_addmm_out(out, sum, a, b, beta, alpha);
}

// The CPU's mm has no other dtype than its operands'.
AOTITorchError aoti_torch_cuda_mm_dtype_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b, int32_t) {
  const Tensor wide_a = torch::stable::to(tensor_of(a), ScalarType::Float);
  const Tensor wide_b = torch::stable::to(tensor_of(b), ScalarType::Float);
  return aoti_torch_cpu_mm_out(out, wide_a.get(), wide_b.get());
}
