// CUDA's threads on the CPU. The host compiler reads csrc/cuda with the headers in include/ in place of CUDA's, and
// every thread of a block becomes a fiber. Blocks run one after the other. A barrier, shuffle or vote parks a fiber until
// all fibers in its mask have arrived; an order drawn by CW_CUDA_EMULATION_SEED (0: always the same) decides who goes on.
//
// What it shows: whether the kernels compute the right thing; results that depend on the order in which threads run
// (another seed, another result: a barrier is missing); barriers and collectives that threads miss, which hang a GPU;
// shared memory that is read before it is written (NaN); misaligned vectors; launches that a GPU would refuse. Built for
// AddressSanitizer also reads and writes out of bounds; for ThreadSanitizer races between threads of one block or of two,
// since only what orders memory in CUDA orders it here: barriers, fences and the ends of kernels, but not shuffles.
//
// What it cannot show: speed; how real hardware orders memory; what only nvcc compiles (PTX, the arithmetic behind
// __CUDA_ARCH__, CUB); blocks that wait for each other, which would hang here; accesses out of bounds that end up inside
// the same allocation; races between blocks whose numbers differ by a multiple of four, or by whole fences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "include/cuda_runtime_api.h"

namespace cw_emulation {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;  // of a block

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

// Runs enter(context) once per thread. `signature` names the kernel in messages.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const char* signature,
                   void (*enter)(const void*), const void* context);

// What lanes of a warp do together. All but sync carry values, and order no memory.
enum class Kind { sync, shuffle, shuffle_xor, shuffle_down, shuffle_up, ballot, max_int, max_unsigned, add };

struct Collective {
  Kind kind;
  unsigned mask;
  uint64_t value;
  int operand;  // of a shuffle
  int width;
  std::source_location where;
};

// Returns what the calling lane gets.
uint64_t meet_warp(const Collective& collective);
void meet_block(const std::source_location& where);

// Where another thread may get in between, with any seed but 0.
void perhaps_yield();

// __threadfence(). ThreadSanitizer takes fences as ordered among themselves, with any atomics around them.
void fence();

// An asynchronous copy to shared memory: `bytes`, the last `zeros` of them zeroed.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  size_t zeros;
};

void add_copy(const Copy& copy);
void commit_copies();
// The calling thread's next copy to be made, of all but its last `batches_left` batches; null: none is left.
const Copy* next_copy(size_t batches_left);

}  // namespace cw_emulation
