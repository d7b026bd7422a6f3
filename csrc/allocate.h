// Allocation of results.
#pragma once

#include <algorithm>
#include <array>

#include "tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cw_ext {

// Uninitialised and contiguous, of at most four dimensions. A C function of libtorch that does without the dispatcher: a few
// dispatched calls take as long as a small batch's loss.
inline Tensor empty(Sizes sizes, const Options& options) {
  std::array<int64_t, 4> strides{};
  CW_CHECK_VALUE(sizes.size() <= strides.size(), "expected at most ", strides.size(), " dimensions, got ", sizes);
  int64_t elements = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = elements;
    elements *= std::max<int64_t>(1, sizes[i]);
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                             to<int32_t>(from(options.dtype)), to<int32_t>(from(options.device.type())),
                                             options.device.index(), &handle);
  CW_CHECK(code == AOTI_TORCH_SUCCESS,
           torch_error(message(options.device.is_cpu() ? "can't allocate memory" : "CUDA out of memory",
                               " (or another error) for a result of shape ", sizes)));
  return Tensor(handle);
}

inline Tensor zeros(Sizes sizes, const Options& options) {
  Tensor result = empty(sizes, options);
  CW_TORCH(aoti_torch_zero_(result.get()));
  return result;
}

// As empty(). The system hands out fresh memory page by page as it is touched, which for a large result takes longer than
// the computation. Huge pages, where the system offers them on request, take a fraction of that time.
inline Tensor empty_large(Sizes sizes, const Options& options) {
  Tensor result = empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  const uintptr_t bytes = options.device.is_cpu() ? uintptr_t(result.numel()) * result.element_size() : 0;
  if (bytes >= 2 * kHugePage) {
    const auto start = reinterpret_cast<uintptr_t>(result.data_ptr());
    // Rounded outwards, to whole huge pages. This is only advice: where the system refuses it, nothing changes.
    const uintptr_t first = start & ~(kHugePage - 1);
    const uintptr_t last = (start + bytes + kHugePage - 1) & ~(kHugePage - 1);
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return result;
}

}  // namespace cw_ext
