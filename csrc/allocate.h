// Allocation of results.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cw_ext {

// As at::empty, but without the dispatcher: a few dispatched calls take as long as a small batch's loss.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return options.device().is_cpu() ? at::detail::empty_cpu(sizes, options) : at::empty(sizes, options);
}

// As at::empty. The system hands out fresh memory page by page as it is touched, which for a large result takes longer than
// the computation. Huge pages, where the system offers them on request, take a fraction of that time.
inline at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor result = empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  if (result.is_cpu() && result.nbytes() >= 2 * kHugePage) {
    const auto start = reinterpret_cast<uintptr_t>(result.data_ptr());
    // Rounded outwards, to whole huge pages. This is only advice: where the system refuses it, nothing changes.
    const uintptr_t first = start & ~(kHugePage - 1);
    const uintptr_t last = (start + result.nbytes() + kHugePage - 1) & ~(kHugePage - 1);
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return result;
}

}  // namespace cw_ext
