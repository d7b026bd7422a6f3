// Stands in for CUDA's header of this name. A copy is made when it is waited for, and until then its target holds NaN:
// a wait that is missing, and a target that is still being read, both show.
#pragma once

#include <cstring>

#include "../emulation.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  cw_emulation::add_copy({to, from, bytes, zeros});
  std::memset(to, 0xff, bytes);
}

inline void __pipeline_commit() { cw_emulation::commit_copies(); }

inline void __pipeline_wait_prior(size_t batches_left) {
  while (const cw_emulation::Copy* const copy = cw_emulation::next_copy(batches_left)) {
    std::memcpy(copy->to, copy->from, copy->bytes - copy->zeros);
    std::memset(static_cast<char*>(copy->to) + (copy->bytes - copy->zeros), 0, copy->zeros);
  }
}
