// What this library calls of libtorch_cuda: the device's guard and stream, and matrix products. With views and copies.
#pragma once

#include <cuda_runtime_api.h>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/macros.h>

#include "../allocate.h"

namespace cw_cuda {

// Makes the tensor's device the current one.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& x) { CW_TORCH(aoti_torch_create_cuda_guard(x.get_device_index(), &handle_)); }
  DeviceGuard(const DeviceGuard&) = delete;
  ~DeviceGuard() { aoti_torch_delete_cuda_guard(handle_); }

 private:
  CUDAGuardHandle handle_ = nullptr;
};

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  CW_TORCH(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// ---- views ----------------------------------------------------------------------------------------------------------

inline Tensor narrowed(const Tensor& x, int64_t dim, int64_t begin, int64_t count) {
  if (!x.defined()) return x;
  AtenTensorHandle handle = nullptr;
  CW_TORCH(aoti_torch_aten_narrow(x.get(), dim, begin, count, &handle));
  return Tensor(handle);
}

// The rows [begin, begin + count).
inline Tensor narrowed(const Tensor& x, int64_t begin, int64_t count) { return narrowed(x, 0, begin, count); }

// [A, B] → [B, A]
inline Tensor transposed(const Tensor& x) {
  const std::array<int64_t, 2> sizes{x.size(1), x.size(0)}, strides{x.stride(1), x.stride(0)};
  AtenTensorHandle handle = nullptr;
  CW_TORCH(aoti_torch_as_strided(x.get(), sizes.data(), strides.data(), &handle));
  return Tensor(handle);
}

// ---- copies and products --------------------------------------------------------------------------------------------

inline void copy(const Tensor& from, const Tensor& to) { CW_TORCH(aoti_torch_copy_(to.get(), from.get(), 0)); }

// to = a·b in the compute dtype, which `to` has; of bf16 operands on the tensor cores, summed in fp32. Autocast, which
// changes the dtypes of torch's own mm, leaves these functions alone.
inline void product(const Tensor& a, const Tensor& b, const Tensor& to) {
  if (a.scalar_type() == to.scalar_type()) {
    CW_TORCH(aoti_torch_cuda_mm_out(to.get(), a.get(), b.get()));
  } else {
    CW_TORCH(aoti_torch_cuda_mm_dtype_out(to.get(), a.get(), b.get(), aoti_torch_dtype_float32()));
  }
}

// sum += a·b, all in the compute dtype.
inline void add_product(const Tensor& a, const Tensor& b, const Tensor& sum) {
  CW_TORCH(aoti_torch_cuda_addmm_out(sum.get(), sum.get(), a.get(), b.get(), 1, 1));
}

}  // namespace cw_cuda
