// Stands in for torch's header of this name where ThreadSanitizer looks on: at::parallel_for on threads whose beginning and
// end it sees, which those of OpenMP's runtime, not compiled for it, are not. The grain is not kept to, so that small
// tests run on several threads too, and where a range is cut depends on no number of processors.
#pragma once

#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace at {

template <class F>
inline void parallel_for(const int64_t begin, const int64_t end, const int64_t, const F& f) {
  constexpr int64_t kThreads = 3;
  const int64_t step = divup(std::max<int64_t>(0, end - begin), kThreads);
  std::vector<std::exception_ptr> errors(kThreads);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += step) {
    threads.emplace_back([&, first, error = &errors[threads.size()]] {
      try {
        const c10::ParallelGuard guard(true);
        f(first, std::min(end, first + step));
      } catch (...) {
        *error = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace at
