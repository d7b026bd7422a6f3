// Allocation of results.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cw_ext {

// As at::empty, without its way through the dispatcher: a small batch's loss takes no longer than a few of those.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return options.device().is_cpu() ? at::detail::empty_cpu(sizes, options) : at::empty(sizes, options);
}

// As at::empty. Memory that is fresh from the system is handed out page by page as it is touched, which for a large
// result takes longer than to compute it: huge pages, where the system offers them on request, take a fraction of that.
inline at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor result = empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  if (result.is_cpu() && result.nbytes() >= 2 * kHugePage) {
    const auto start = reinterpret_cast<uintptr_t>(result.data_ptr());
    // Outwards: a huge page is one as a whole or not at all. Only advice, and where it is refused, nothing changes.
    const uintptr_t first = start & ~(kHugePage - 1);
    const uintptr_t last = (start + result.nbytes() + kHugePage - 1) & ~(kHugePage - 1);
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return result;
}

}  // namespace cw_ext
