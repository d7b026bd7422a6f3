// From a call's tensors to the kernels of the right type and instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../calls.h"
#include "isa.h"
#include "kernels.h"

namespace cw_cpu {

// CW_WITH_ISA(call(...)) calls it in the namespace of the instruction set.
#if defined(__x86_64__)
#define CW_WITH_ISA(...)                                \
  (isa() == Isa::avx512 ? isa_avx512::__VA_ARGS__       \
   : isa() == Isa::avx2 ? isa_avx2::__VA_ARGS__         \
                        : isa_default::__VA_ARGS__)
#else
#define CW_WITH_ISA(...) (isa_default::__VA_ARGS__)
#endif

template <typename Function>
void with_type(ScalarType type, Function&& function) {
  switch (type) {
    case kFloat:
      return function(float{});
    case kDouble:
      return function(double{});
    case kHalf:
      return function(Half{});
    case kBFloat16:
      return function(BFloat16{});
    default:
      CW_CHECK_TYPE(false, "expected a floating dtype, got ", type);
  }
}

// out [n, ≥ dim] rows of `stride` = or += factor · coefficients [rows, n]ᵀ · x [rows, dim], the same bits on any number of
// threads. Room for whole panels (ProductTask) is needed beyond dim.
template <typename T>
void weighted_sums(const T* coefficients, int64_t rows, int64_t n, const T* x, int64_t dim, T factor, T* out,
                   int64_t stride, bool accumulate = false);

template <typename T>
T* pointer(const Tensor& t) {
  return t.defined() && t.numel() > 0 ? static_cast<T*>(t.data_ptr()) : nullptr;
}

template <typename T>
RowInputs<T> row_inputs(const cw_ext::RowTensors& x) {
#define CW_VALUE(name) {pointer<const T>(x.name.rows), x.name.rows.defined() ? x.name.rows.stride(0) : 0, x.name.value},
  return {CW_ROW_VALUES(CW_VALUE)};
#undef CW_VALUE
}

template <typename T>
Curve<T> curve_pointers(const cw_ext::CurveTensors& x) {
  const bool given = x.log_weights.defined();
  return cw_ext::make_curve(pointer<const T>(x.log_weights), given ? x.log_weights.stride(0) : 0,
                            given ? x.log_weights.size(1) : 0, x.low, x.high, x.on_margin);
}

template <typename T>
RowResults<T> row_outputs(const cw_ext::RowOutputs& out) {
  return {pointer<T>(out.loss), pointer<bool>(out.live), pointer<T>(out.d_log_q), pointer<T>(out.d_values),
          out.loss.size(0), pointer<T>(out.d_curve), pointer<int64_t>(out.above)};
}

// Rows per task, large enough to be worth waking a thread, which takes tens of microseconds if threads do not spin while they
// wait. `work` is the number of elements in a row; `cost` is the cost of an element, 1 for a copy.
inline int64_t grain(int64_t work, int64_t cost = 4) {
  return std::max<int64_t>(1, 131072 / std::max<int64_t>(1, work * cost));
}

// Where whole registers begin, so that none lies in two lines of the cache.
constexpr std::align_val_t kScratchAlignment{64};

struct FreeScratch {
  void operator()(void* x) const { ::operator delete[](x, kScratchAlignment); }
};

template <typename T>
using Scratch = std::unique_ptr<T[], FreeScratch>;

// Uninitialised.
template <typename T>
Scratch<T> scratch(int64_t size) {
  return Scratch<T>(static_cast<T*>(::operator new[](static_cast<size_t>(size) * sizeof(T), kScratchAlignment)));
}

// See Table: `room` holds the copy of the last rows and the row of zeros.
template <typename In>
Table<In> readable_table(const Tensor& items, std::vector<In>& room) {
  constexpr int64_t kRegister = 64 / int64_t(sizeof(In));
  const int64_t count = items.size(0), dim = items.size(1);
  const int64_t copied = std::min(count, (kRegister + dim - 1) / dim);
  const In* const rows = pointer<const In>(items);
  room.assign(static_cast<size_t>((copied + 1) * dim + 2 * kRegister), In{});
  std::memcpy(room.data(), rows + (count - copied) * dim, static_cast<size_t>(copied * dim) * sizeof(In));
  return {rows, dim, count - copied, room.data(), room.data() + copied * dim + kRegister};
}

// Fills an embeddings task from its call, an EmbeddingsCall or a SharedNegativesCall.
template <typename In, typename Call>
void fill_query_task(const Call& call, std::vector<In>& room, QueryTask<In>& task) {
  using T = typename Compute<In>::type;
  task.arguments = call.loss.arguments;
  task.queries = pointer<const In>(call.queries);
  task.items = readable_table(call.items, room);
  task.n = call.neg_ids.defined() ? call.neg_ids.size(-1) : 0;
  task.m = call.extra_ids.size(1);
  task.log_q = pointer<const T>(call.log_q);
  task.log_q_stride = call.log_q.defined() ? call.log_q.stride(0) : 0;
  task.values = row_inputs<T>(call.loss.values);
  task.curve = curve_pointers<T>(call.loss.curve);
  task.scale = T(call.scale);
  task.normalized = call.normalized;
  task.with_gradients = call.with_gradients;
  task.out = row_outputs<T>(call.out);
  task.unit_queries = pointer<T>(call.unit_queries);
  task.d_queries = pointer<T>(call.d_queries);
}

}  // namespace cw_cpu
