// The emulation's fibers and their meetings. Always compiled without a sanitizer, which is told what it must know.
#include "emulation.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// Null where the program runs without the sanitizer. The last three forget all accesses to a piece of memory: they are
// meant for the heap of a Java machine, which may be anywhere.
extern "C" {
#define CW_WEAK __attribute__((weak))
CW_WEAK void __sanitizer_start_switch_fiber(void** own_fake_stack, const void* bottom, size_t size);
CW_WEAK void __sanitizer_finish_switch_fiber(void* own_fake_stack, const void** old_bottom, size_t* old_size);
CW_WEAK void __asan_poison_memory_region(const volatile void* start, size_t size);
CW_WEAK void __asan_unpoison_memory_region(const volatile void* start, size_t size);
CW_WEAK void* __tsan_get_current_fiber();
CW_WEAK void* __tsan_create_fiber(unsigned flags);
CW_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
CW_WEAK void __tsan_acquire(void* object);
CW_WEAK void __tsan_release(void* object);
CW_WEAK void __tsan_java_init(uintptr_t heap, uintptr_t size);
CW_WEAK void __tsan_java_alloc(uintptr_t start, uintptr_t size);
CW_WEAK void __tsan_java_free(uintptr_t start, uintptr_t size);

// The shared variables of all kernels, from the linker.
__attribute__((weak, visibility("hidden"))) extern unsigned char __start_cw_shared[];
__attribute__((weak, visibility("hidden"))) extern unsigned char __stop_cw_shared[];
}

namespace cw_cuda {
alignas(16) unsigned char dynamic_shared[cw_emulation::kSharedBytesOptin];
}

namespace cw_emulation {

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace {

// ---- fibers --------------------------------------------------------------------------------------------------------

constexpr size_t kStackBytes = size_t(256) << 10;
constexpr size_t kPageBytes = 4096;

enum class State { ready, at_warp, at_block, done };

struct PendingCopies {
  std::vector<Copy> copies;
  std::vector<size_t> batches;  // where each ends that is complete
  size_t made = 0;              // copies
  size_t closed = 0;            // batches whose copies have all been made
};

struct Fiber {
  unsigned char* stack = nullptr;
  void* resume = nullptr;  // its stack pointer
  uint3 index;
  unsigned rank;  // in the block
  State state;
  Collective collective;
  uint64_t result;
  PendingCopies pending;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
};

void enter_fiber();

// Saves on the stack what a call must preserve, leaves the stack at *from and goes on with `to`. (The system's
// swapcontext also switches the signal mask, by a system call that takes fifty times as long.)
extern "C" void cw_emulation_switch(void** from, void* to);
asm(R"(
.text
.hidden cw_emulation_switch
.type cw_emulation_switch, @function
cw_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cw_emulation_switch, . - cw_emulation_switch
)");

void prepare(Fiber& fiber) {
  // Stacks whose tops are whole pages apart would meet in the same lines of the caches.
  auto* top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64 * (fiber.rank % 32));
  *--top = nullptr;  // where enter_fiber() would return to
  *--top = reinterpret_cast<void*>(&enter_fiber);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.resume = top;
}

void make_stack(Fiber& fiber) {
  // A page that must not be touched below each.
  void* const mapped = mmap(nullptr, kPageBytes + kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, kPageBytes, PROT_NONE) != 0) {
    std::perror("CUDA emulation: no memory for a stack");
    std::abort();
  }
  fiber.stack = static_cast<unsigned char*>(mapped) + kPageBytes;
}

// ---- the block that runs -------------------------------------------------------------------------------------------

struct Warp {
  unsigned parked = 0;  // lanes at a meeting of the warp
  unsigned exited = 0;
};

// With ThreadSanitizer each of so many consecutive blocks has fibers of its own; those of blocks that are further apart
// share them, and races between them are not seen.
constexpr unsigned kBlocksApart = 4;
// Masks whose numbers are the same modulo this share an object that orders memory.
constexpr unsigned kMasksApart = 61;

struct Ordering {
  char block;
  char warps[kMaxThreads / kWarp][kMasksApart];
};

std::mutex launches;  // one at a time: shared memory is static
std::map<const void*, int> allowed_bytes;

const char* signature;
void (*enter)(const void*);
const void* context;
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber outside;  // the thread that launches
Fiber* current = &outside;
std::vector<Fiber*> members;  // of the block
std::vector<Warp> warps;
std::vector<unsigned> runnable;
unsigned threads;
unsigned exited;
unsigned at_block;
unsigned slot;  // the block's number modulo kBlocksApart
Ordering ordering[kBlocksApart];
char launch_order, fence_order;
const void* outside_bottom;
size_t outside_size;

uint64_t seed_from_environment() {
  const char* const given = std::getenv("CW_CUDA_EMULATION_SEED");
  return given ? std::strtoull(given, nullptr, 10) : 1;
}

const uint64_t seed = seed_from_environment();

uint64_t random_number() {
  static uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// ---- messages ------------------------------------------------------------------------------------------------------

std::string kernel_name() {
  // Of "… [with Parameters = {types of the kernel's parameters}; …]", the types.
  const std::string all = signature;
  const size_t first = all.find("Parameters = {"), last = all.find('}', first);
  return first == std::string::npos ? all : "the kernel of (" + all.substr(first + 14, last - first - 14) + ")";
}

std::string place(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string name(const uint3& x) {
  return "(" + std::to_string(x.x) + ", " + std::to_string(x.y) + ", " + std::to_string(x.z) + ")";
}

[[noreturn]] void fail(const Fiber& fiber, const std::string& message) {
  std::fprintf(stderr, "CUDA emulation: %s: block %s, thread %s: %s\n", kernel_name().c_str(), name(blockIdx).c_str(),
               name(fiber.index).c_str(), message.c_str());
  std::abort();
}

[[noreturn]] void fail_stuck() {
  for (Fiber* const fiber : members) {
    if (fiber->state != State::at_warp) continue;
    char mask[16];
    std::snprintf(mask, sizeof(mask), "%08x", fiber->collective.mask);
    fail(*fiber, "waits for ever for the lanes " + std::string(mask) + " at " + place(fiber->collective.where));
  }
  for (Fiber* const fiber : members) {
    if (fiber->state == State::at_block) fail(*fiber, "waits for ever at " + place(fiber->collective.where));
  }
  std::abort();
}

// ---- scheduling ----------------------------------------------------------------------------------------------------

void as_fiber(const Fiber& fiber, void (*does)(void*), void* object) {
  __tsan_switch_to_fiber(fiber.tsan, 1);
  does(object);
  __tsan_switch_to_fiber(current->tsan, 1);
}

void switch_to(Fiber& to) {
  Fiber& from = *current;
  if (&from == &to) return;
  current = &to;
  if (&to != &outside) threadIdx = to.index;
  if (__sanitizer_start_switch_fiber) {
    const bool out = &to == &outside;
    __sanitizer_start_switch_fiber(from.state == State::done ? nullptr : &from.fake_stack,
                                   out ? outside_bottom : to.stack, out ? outside_size : kStackBytes);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan, 1);  // 1: orders no memory
  cw_emulation_switch(&from.resume, to.resume);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void schedule() {
  if (runnable.empty()) {
    if (exited < threads) fail_stuck();
    return switch_to(outside);
  }
  if (seed != 0) std::swap(runnable[random_number() % runnable.size()], runnable.back());
  Fiber& next = *members[runnable.back()];
  runnable.pop_back();
  switch_to(next);
}

void make_runnable(Fiber& fiber) {
  fiber.state = State::ready;
  runnable.push_back(fiber.rank);
}

// ---- meetings ------------------------------------------------------------------------------------------------------

Fiber& lane_of(unsigned warp, unsigned lane) { return *members[warp * kWarp + lane]; }

// What has happened in any of them is before what will happen in any.
template <typename Each>
void order(void* object, Each&& each) {
  if (!__tsan_acquire) return;
  each([&](const Fiber& fiber) { as_fiber(fiber, __tsan_release, object); });
  each([&](const Fiber& fiber) { as_fiber(fiber, __tsan_acquire, object); });
}

uint64_t shuffled(const Fiber& fiber, unsigned lane, const uint64_t (&values)[kWarp]) {
  const Collective& c = fiber.collective;
  const int own = int(lane), first = own & ~(c.width - 1);
  int from = own;
  switch (c.kind) {
    case Kind::shuffle:
      from = first + (c.operand & (c.width - 1));
      break;
    case Kind::shuffle_xor:
      from = own ^ c.operand;
      break;
    case Kind::shuffle_down:
      from = own + c.operand;
      break;
    default:
      from = own - c.operand;
  }
  if (from < first || from >= first + c.width) from = own;
  if (!(c.mask >> from & 1)) fail(fiber, "reads lane " + std::to_string(from) + ", which is not in the mask");
  return values[from];
}

uint64_t result_of(const Fiber& fiber, unsigned lane, const uint64_t (&values)[kWarp]) {
  const Collective& c = fiber.collective;
  uint32_t result = 0;
  bool first = true;
  const auto fold = [&](auto&& with) {
    for (int i = 0; i < kWarp; ++i) {
      if (!(c.mask >> i & 1)) continue;
      result = first ? uint32_t(values[i]) : with(result, uint32_t(values[i]));
      first = false;
    }
    return result;
  };
  switch (c.kind) {
    case Kind::sync:
      return 0;
    case Kind::ballot:
      for (int i = 0; i < kWarp; ++i) result |= uint32_t(c.mask >> i & values[i] & 1) << i;
      return result;
    case Kind::max_int:
      return fold([](uint32_t a, uint32_t b) { return int32_t(a) < int32_t(b) ? b : a; });
    case Kind::max_unsigned:
      return fold([](uint32_t a, uint32_t b) { return a < b ? b : a; });
    case Kind::add:
      return fold([](uint32_t a, uint32_t b) { return a + b; });
    default:
      return shuffled(fiber, lane, values);
  }
}

// Lets the lanes of `mask` go on, if all are there.
void complete(unsigned warp, unsigned mask) {
  const unsigned expected = mask & ~warps[warp].exited;
  if ((warps[warp].parked & expected) != expected) return;
  uint64_t values[kWarp] = {};
  const Fiber* first = nullptr;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(expected >> lane & 1)) continue;
    const Fiber& fiber = lane_of(warp, lane);
    if (fiber.collective.mask != mask) return;
    values[lane] = fiber.collective.value;
    if (!first) first = &fiber;
    if (fiber.collective.kind != first->collective.kind) {
      fail(fiber, "meets another collective at " + place(fiber.collective.where) + " than thread " +
                      name(first->index) + " at " + place(first->collective.where));
    }
    if (expected != mask && fiber.collective.kind != Kind::sync) {
      fail(fiber, "meets lanes that have exited, or never were, at " + place(fiber.collective.where));
    }
  }
  const auto each = [&](auto&& visit) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (expected >> lane & 1) visit(lane_of(warp, lane));
    }
  };
  if (first->collective.kind == Kind::sync) order(&ordering[slot].warps[warp][mask % kMasksApart], each);
  each([&](Fiber& fiber) {
    fiber.result = result_of(fiber, fiber.rank % kWarp, values);
    make_runnable(fiber);
  });
  warps[warp].parked &= ~expected;
}

void finish() {
  Fiber& self = *current;
  self.state = State::done;
  ++exited;
  if (at_block > 0) fail(self, "exits while other threads of its block wait at a barrier");
  const unsigned number = self.rank / kWarp, bit = 1u << self.rank % kWarp;
  Warp& warp = warps[number];
  warp.exited |= bit;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    // A lane that the last step has let go on is no longer parked.
    if (warp.parked >> lane & 1 && lane_of(number, lane).collective.mask & bit) {
      complete(number, lane_of(number, lane).collective.mask);
    }
  }
  schedule();
}

void enter_fiber() {
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!outside_bottom) outside_bottom = bottom, outside_size = size;  // the first fiber is entered from outside
  }
  enter(context);
  finish();
}

// ---- blocks --------------------------------------------------------------------------------------------------------

// All bits 1, which is NaN; not by memset, which the sanitizers would watch.
void poison(unsigned char* begin, unsigned char* end) {
  volatile unsigned char* p = begin;
  for (; p < end && reinterpret_cast<uintptr_t>(p) % 8 != 0; ++p) *p = 0xff;
  for (; p + 8 <= end; p += 8) *reinterpret_cast<volatile uint64_t*>(p) = ~uint64_t(0);
  for (; p < end; ++p) *p = 0xff;
}

void forget_accesses(unsigned char* begin, unsigned char* end) {
  if (!__tsan_java_alloc || begin == end) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) & ~uintptr_t(7);
  const uintptr_t size = (reinterpret_cast<uintptr_t>(end) - first + 7) & ~uintptr_t(7);
  __tsan_java_free(first, size);
  __tsan_java_alloc(first, size);
}

Fiber& fiber_of(unsigned rank) {
  const size_t number = size_t(slot) * kMaxThreads + rank;
  if (fibers.size() <= number) fibers.resize(number + 1);
  if (!fibers[number]) {
    fibers[number] = std::make_unique<Fiber>();
    make_stack(*fibers[number]);
    if (__tsan_create_fiber) fibers[number]->tsan = __tsan_create_fiber(0);
  }
  return *fibers[number];
}

void run_block(size_t shared_bytes) {
  using cw_cuda::dynamic_shared;
  if (__asan_poison_memory_region) {
    __asan_unpoison_memory_region(dynamic_shared, shared_bytes);
    __asan_poison_memory_region(dynamic_shared + shared_bytes, sizeof(dynamic_shared) - shared_bytes);
  }
  poison(dynamic_shared, dynamic_shared + shared_bytes);
  poison(__start_cw_shared, __stop_cw_shared);
  forget_accesses(dynamic_shared, dynamic_shared + shared_bytes);
  forget_accesses(__start_cw_shared, __stop_cw_shared);

  exited = at_block = 0;
  warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  if (threads % kWarp != 0) warps.back().exited = ~0u << threads % kWarp;
  members.clear();
  runnable.clear();
  for (unsigned rank = 0; rank < threads; ++rank) {
    Fiber& fiber = fiber_of(rank);
    fiber.rank = rank;
    fiber.index = {rank % blockDim.x, rank / blockDim.x % blockDim.y, rank / blockDim.x / blockDim.y};
    fiber.pending.copies.clear();
    fiber.pending.batches.clear();
    fiber.pending.made = fiber.pending.closed = 0;
    prepare(fiber);
    members.push_back(&fiber);
    if (__tsan_acquire) as_fiber(fiber, __tsan_acquire, &launch_order);
  }
  for (unsigned rank = threads; rank-- > 0;) make_runnable(*members[rank]);
  schedule();
}

}  // namespace

// ---- the interface -------------------------------------------------------------------------------------------------

uint64_t meet_warp(const Collective& collective) {
  Fiber& self = *current;
  const unsigned warp = self.rank / kWarp, bit = 1u << self.rank % kWarp;
  if (!(collective.mask & bit)) fail(self, "is not in the mask that it gives at " + place(collective.where));
  self.collective = collective;
  self.state = State::at_warp;
  warps[warp].parked |= bit;
  complete(warp, collective.mask);
  schedule();
  return self.result;
}

void meet_block(const std::source_location& where) {
  Fiber& self = *current;
  self.collective.where = where;
  self.state = State::at_block;
  if (exited > 0) fail(self, "waits at " + place(where) + " for threads of its block that have exited");
  if (++at_block == threads) {
    for (const Fiber* const fiber : members) {
      const std::source_location& other = fiber->collective.where;
      if (other.line() == where.line() && std::strcmp(other.file_name(), where.file_name()) == 0) continue;
      fail(self, "waits at " + place(where) + ", but thread " + name(fiber->index) + " at " + place(other));
    }
    order(&ordering[slot].block, [](auto&& visit) {
      for (Fiber* const fiber : members) visit(*fiber);
    });
    at_block = 0;
    for (Fiber* const fiber : members) make_runnable(*fiber);
  }
  schedule();
}

void perhaps_yield() {
  if (seed == 0 || random_number() % 4 != 0) return;
  make_runnable(*current);
  schedule();
}

void fence() {
  if (!__tsan_acquire) return;
  __tsan_release(&fence_order);
  __tsan_acquire(&fence_order);
}

void add_copy(const Copy& copy) {
  const bool known = copy.bytes == 4 || copy.bytes == 8 || copy.bytes == 16;
  const auto misplaced = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % copy.bytes != 0; };
  if (!known || copy.zeros > copy.bytes || misplaced(copy.to) || misplaced(copy.from)) {
    fail(*current, "copies asynchronously what is not 4, 8 or 16 bytes, or not aligned to as many");
  }
  current->pending.copies.push_back(copy);
}

void commit_copies() { current->pending.batches.push_back(current->pending.copies.size()); }

const Copy* next_copy(size_t batches_left) {
  PendingCopies& p = current->pending;
  while (p.closed + batches_left < p.batches.size() && p.made == p.batches[p.closed]) ++p.closed;
  return p.closed + batches_left < p.batches.size() ? &p.copies[p.made++] : nullptr;
}

void allow_shared_bytes(const void* kernel, int bytes) {
  const std::lock_guard guard(launches);
  allowed_bytes[kernel] = bytes;
}

int allowed_shared_bytes(const void* kernel) {
  const std::lock_guard guard(launches);
  const auto found = allowed_bytes.find(kernel);
  return found == allowed_bytes.end() ? kSharedBytes - kStaticSharedBytes : found->second;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const char* given_signature,
                   void (*given_enter)(const void*), const void* given_context) {
  const dim3 grid = config.gridDim, size = config.blockDim;
  const uint64_t volume = uint64_t(size.x) * size.y * size.z;
  if (uint64_t(grid.x) * grid.y * grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      volume == 0 || volume > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > size_t(allowed_shared_bytes(kernel))) return cudaErrorInvalidValue;

  const std::lock_guard guard(launches);
  signature = given_signature;
  enter = given_enter;
  context = given_context;
  gridDim = grid;
  blockDim = size;
  threads = unsigned(volume);
  outside.state = State::ready;
  if (__tsan_get_current_fiber) {
    static const bool once = (__tsan_java_init(8, (uintptr_t(1) << 47) - 16), true);
    (void)once;
    outside.tsan = __tsan_get_current_fiber();
    __tsan_release(&launch_order);
  }
  uint64_t number = 0;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        slot = __tsan_create_fiber ? unsigned(number++ % kBlocksApart) : 0;
        run_block(config.dynamicSmemBytes);
      }
    }
  }
  if (__tsan_get_current_fiber) {
    for (const auto& fiber : fibers) {
      if (fiber) as_fiber(*fiber, __tsan_release, &launch_order);
    }
    __tsan_acquire(&launch_order);
  }
  return cudaSuccess;
}

}  // namespace cw_emulation
