// Faults that the sanitizers must report where the CPU kernels could have them, and the same without a fault.
// test_sanitizers.py calls plant(name) from a Python that runs as the tests do.
#include "../../../csrc/allocate.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

using cw_ext::Tensor;
using Vector = float __attribute__((vector_size(64), aligned(4)));

// What is read from it the compiler does not know.
volatile int64_t sink;

Tensor table() {
  const std::array<int64_t, 2> sizes{5, 24};
  const Tensor result = cw_ext::empty(sizes, {cw_ext::kFloat, cw_ext::Device("cpu")});
  std::fill_n(static_cast<float*>(result.mutable_data_ptr()), result.numel(), 1.0f);
  return result;
}

float read(const Tensor& x, int64_t at) { return static_cast<const float*>(x.const_data_ptr())[at]; }

// As csrc/cpu/simd.h reads a register full.
float read_vector(const Tensor& x, int64_t at) {
  Vector v;
  std::memcpy(&v, static_cast<const float*>(x.const_data_ptr()) + at, sizeof v);
  return v[0] + v[15];
}

void write_scratch(int64_t at) {
  const int64_t size = (sink = 40, sink);
  const std::unique_ptr<volatile float[]> scratch(new float[size]);
  scratch[at] = 1;
}

void keep(float x) { sink = static_cast<int64_t>(x); }

int64_t sum_in_parallel(bool locked) {
  std::mutex mutex;
  int64_t sum = 0;
  cw_ext::parallel_for(0, 100, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::unique_lock<std::mutex> lock = locked ? std::unique_lock(mutex) : std::unique_lock<std::mutex>();
      sum += i;
    }
  });
  return sum;
}

// Bucket sums of which each thread writes a share of its own, or also the first of its neighbour's.
int64_t write_in_parallel(int64_t beyond) {
  std::vector<float> out(100);
  cw_ext::parallel_for(0, 90, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end + beyond; ++i) out[i] += 1;
  });
  return int64_t(out[10]);
}

const std::map<std::string, void (*)()> kFaults = {
    {"reads_inside", [] { keep(read(table(), 5 * 24 - 1)); }},
    {"reads_past_tensor", [] { keep(read(table(), 5 * 24)); }},
    {"reads_before_tensor", [] { keep(read(table(), -1)); }},
    {"reads_freed_tensor",
     [] {
       const float* const x = static_cast<const float*>(table().const_data_ptr());
       keep(*const_cast<const volatile float*>(x));
     }},
    {"reads_vector_inside", [] { keep(read_vector(table(), 5 * 24 - 16)); }},
    {"reads_vector_past_tensor", [] { keep(read_vector(table(), 5 * 24 - 15)); }},
    {"writes_inside", [] { write_scratch(39); }},
    {"writes_past_scratch", [] { write_scratch(40); }},
    {"indexes_past_vector",
     [] {
       std::vector<int64_t> cuts(3);
       cuts.reserve(8);
       sink = cuts[static_cast<size_t>(sink + 3)];
     }},
    {"overflows",
     [] {
       sink = std::numeric_limits<int64_t>::max();
       sink = sink + 1;
     }},
    {"shifts_too_far",
     [] {
       sink = 32;
       sink = 1 << sink;
     }},
    {"casts_infinity", [] { keep(read(table(), 0) / (read(table(), 0) - 1)); }},
    {"casts_misaligned",
     [] {
       const Tensor x = table();
       sink = *reinterpret_cast<const int32_t*>(static_cast<const char*>(x.const_data_ptr()) + 2);
     }},
    {"throws",
     [] {
       try {
         CW_CHECK_VALUE(sink != 0, "expected");
       } catch (const std::invalid_argument&) {
       }
     }},
    {"sums_with_lock", [] { sink = sum_in_parallel(true); }},
    {"sums_without_lock", [] { sink = sum_in_parallel(false); }},
    {"writes_own_share", [] { sink = write_in_parallel(0); }},
    {"writes_into_neighbours_share", [] { sink = write_in_parallel(1); }},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void plant(const char* name) { kFaults.at(name)(); }
