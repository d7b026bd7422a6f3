// What a machine can do at most, with so many threads: prints a JSON object of rates per second, of all threads together.
// Compiled by rates.py for the machine that it runs on.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "../../csrc/cw_row.h"
#include "../../csrc/philox.h"

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / int(sizeof(float));
constexpr int kSums = 12;  // independent, as many as hide an instruction's latency

volatile float sink;

// How often per second all threads together do what one run of job(thread) does `count` times: the best of some trials.
double rate(int threads, double count, const std::function<float(int)>& job) {
  double best = 0;
  for (int trial = 0; trial < 5; ++trial) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { sink = job(t); });
    sink = job(0);
    for (std::thread& other : others) other.join();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    best = std::max(best, threads * count / passed.count());
  }
  return best;
}

float multiply_add(int) {
  Vector sums[kSums], x = Vector{} + 0.5f, y = Vector{} + 1.0f;
  for (int s = 0; s < kSums; ++s) sums[s] = Vector{} + float(s);  // or the compiler would compute one for all
  for (int i = 0; i < 10'000'000; ++i) {
    asm volatile("" : "+v"(x), "+v"(y));
#pragma GCC unroll 12
    for (Vector& sum : sums) sum = sum * x + y;
  }
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  return total;
}

#if defined(__AVX512BF16__)
float multiply_add_bf16(int) {
  __m512 sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_ps(float(s));
  __m512i x = _mm512_set1_epi16(0x3F80), y = x;
  for (int i = 0; i < 10'000'000; ++i) {
    asm volatile("" : "+v"(x), "+v"(y));
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
  }
  float total = 0;
  for (const __m512& sum : sums) total += sum[0];
  return total;
}
#endif

constexpr int kInCache = 4096;

float exponentials(int) {
  alignas(64) static thread_local float x[kInCache];
  for (int j = 0; j < kInCache; ++j) x[j] = -float(j) / kInCache;
  for (int i = 0; i < 10'000; ++i) {
#pragma omp simd
    for (int j = 0; j < kInCache; ++j) x[j] = -cw::exp_nonpositive(x[j]);
  }
  return x[0];
}

float words(int) {
  uint64_t sum = 0;
  for (int i = 0; i < 2'000; ++i) {
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < kInCache / 4; ++j) {
      const auto w = cw::philox<uint64_t>(uint64_t(j), 0, uint64_t(i), 0, 1);
      sum += w.x[0] + w.x[1] + w.x[2] + w.x[3];
    }
  }
  return float(sum);
}

// Bytes of rows read at random from a table.
double rows_per_second(int threads, int64_t items, int64_t row_bytes) {
  const int64_t vectors = std::max<int64_t>(1, row_bytes / kBytes), reads = 1 << 20;
  const std::vector<Vector> table(static_cast<size_t>(items * vectors));
  std::vector<std::vector<uint32_t>> ids;
  for (int t = 0; t < threads; ++t) {
    ids.emplace_back();
    uint64_t state = uint64_t(t) + 1;
    for (int64_t j = 0; j < reads + 64; ++j) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      ids[t].push_back(uint32_t((state >> 32) * uint64_t(items) >> 32));
    }
  }
  return rate(threads, double(reads), [&](int t) {
    Vector sum = {};
    for (int64_t j = 0; j < reads; ++j) {
      const char* const ahead = reinterpret_cast<const char*>(&table[ids[t][j + 24] * vectors]);
      for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(ahead + b);
      const Vector* const row = &table[ids[t][j] * vectors];
      for (int64_t v = 0; v < vectors; ++v) sum += row[v];
    }
    return sum[0];
  });
}

// Bytes copied, read and written counted once each, in memory that is there; it stays in a cache if that is large enough.
double copied_per_second(int threads, int64_t bytes) {
  const int64_t count = std::max<int64_t>(1, bytes / 2 / threads / int64_t(sizeof(Vector)));
  const int64_t times = std::max<int64_t>(1, (1 << 28) / bytes);
  std::vector<std::vector<Vector>> from, to;
  for (int t = 0; t < threads; ++t) {
    from.emplace_back(static_cast<size_t>(count));
    to.emplace_back(static_cast<size_t>(count));
  }
  return rate(threads, double(2 * count * times * int64_t(sizeof(Vector))), [&](int t) {
    for (int64_t i = 0; i < times; ++i) {
      std::copy(from[t].begin(), from[t].end(), to[t].begin());
      asm volatile("" : : "r"(to[t].data()) : "memory");
    }
    return to[t][0][0];
  });
}

}  // namespace

// rates THREADS [rows ITEMS ROW_BYTES | copy BYTES]...
int main(int argc, char** argv) {
  const int threads = std::atoi(argv[1]);
  std::printf("{\"multiply_add\": %g", rate(threads, 10e6 * kSums * kLanes, multiply_add));
#if defined(__AVX512BF16__)
  std::printf(", \"multiply_add_bf16\": %g", rate(threads, 10e6 * kSums * 2 * kLanes, multiply_add_bf16));
#endif
  std::printf(", \"exponential\": %g", rate(threads, 1e4 * kInCache, exponentials));
  std::printf(", \"word\": %g", rate(threads, 2e3 * kInCache, words));
  for (int i = 2; i < argc;) {
    const bool copy = argv[i][0] == 'c';
    const int64_t size = std::atoll(argv[i + 1]);
    if (copy) {
      std::printf(", \"copy %lld\": %g", static_cast<long long>(size), copied_per_second(threads, size));
      i += 2;
    } else {
      const int64_t bytes = std::atoll(argv[i + 2]);
      std::printf(", \"rows %lld %lld\": %g", static_cast<long long>(size), static_cast<long long>(bytes),
                  rows_per_second(threads, size, bytes));
      i += 3;
    }
  }
  std::printf("}\n");
}
