// Preloaded into a process, lets one chosen allocation fail, counted from 1: the memory of tensors, which torch takes
// from posix_memalign and little else does, and what the extension's own code takes from `new`.
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include <dlfcn.h>

namespace {

std::atomic<long> countdown{0};
std::atomic<uintptr_t> code_begin{0}, code_end{0};
std::atomic<std::size_t> least_size{0};

bool fails() { return countdown.load() > 0 && countdown.fetch_sub(1) == 1; }

void* allocate(std::size_t size, void* caller) {
  const auto from = reinterpret_cast<uintptr_t>(caller);
  if (from >= code_begin && from < code_end && size >= least_size && fails()) throw std::bad_alloc();
  void* const place = std::malloc(size ? size : 1);
  if (!place) throw std::bad_alloc();
  return place;
}

}  // namespace

extern "C" {

// Where the code is whose `new` counts, if it asks for so many bytes.
void watch_code(uintptr_t begin, uintptr_t end, std::size_t least) {
  code_begin = begin;
  code_end = end;
  least_size = least;
}

// The k-th allocation from now on fails; with 0 none does.
void fail_allocation(long k) { countdown = k; }

// How many allocations there are until the one that fails; at most 0 if it has.
long allocations_left() { return countdown; }

int posix_memalign(void** place, std::size_t alignment, std::size_t size) {
  static const auto original =
      reinterpret_cast<int (*)(void**, std::size_t, std::size_t)>(dlsym(RTLD_NEXT, "posix_memalign"));
  return fails() ? ENOMEM : original(place, alignment, size);
}

}  // extern "C"

void* operator new(std::size_t size) { return allocate(size, __builtin_return_address(0)); }
void* operator new[](std::size_t size) { return allocate(size, __builtin_return_address(0)); }
