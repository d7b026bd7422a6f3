// Stands in for torch's function of this name where ThreadSanitizer looks on: on threads whose beginning and end it sees,
// which those of OpenMP's runtime, not compiled for it, are not. The grain is not kept to, so that small tests run on
// several threads too, and where a range is cut depends on no number of processors.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

// Hidden, so that what it is linked with takes it in place of torch's. `body` lets no exception out.
extern "C" __attribute__((visibility("hidden"))) int32_t torch_parallel_for(
    int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  constexpr int64_t kThreads = 3;
  const int64_t step = (std::max<int64_t>(0, end - begin) + kThreads - 1) / kThreads;
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += step) {
    threads.emplace_back(body, first, std::min(end, first + step), context);
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}
