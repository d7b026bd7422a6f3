// Tensors as the ops see them: LibTorch's stable ABI (torch/csrc/stable, torch/headeronly), so that one library loads under
// every torch from 2.11 on. What that ABI leaves to its users stands here: exceptions, printing, options.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <array>
#include <exception>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

// libtorch has this from 2.13 on. Looked up when the library loads, so that errors keep their messages there.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace cw_ext {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

constexpr ScalarType kDouble = ScalarType::Double, kFloat = ScalarType::Float, kHalf = ScalarType::Half,
                     kBFloat16 = ScalarType::BFloat16, kLong = ScalarType::Long, kInt = ScalarType::Int,
                     kShort = ScalarType::Short, kByte = ScalarType::Byte, kBool = ScalarType::Bool,
                     kUInt32 = ScalarType::UInt32;

// ---- messages and exceptions ----------------------------------------------------------------------------------------

template <typename T>
void print(std::ostream& out, const T& value) {
  out << value;
}

inline void print(std::ostream& out, ScalarType type) { out << torch::headeronly::toString(type); }

inline void print(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i > 0 ? ", " : "") << sizes[i];
  out << ']';
}

inline void print(std::ostream& out, const Device& device) {
  out << (device.is_cpu() ? "cpu" : device.is_cuda() ? "cuda" : "another device");
  if (!device.is_cpu() && device.has_index()) out << ':' << device.index();
}

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (print(out, parts), ...);
  return out.str();
}

// The class that an error is to have in Python stands at the front of its message, and cw_ext/op_errors.py gives it that
// class: the stable ABI has none that would arrive as TypeError, and from torch 2.15 on std::invalid_argument arrives as
// RuntimeError (findings/torch-op-exceptions.sh).
#define CW_CHECK_AS(exception, condition, ...)       \
  do {                                               \
    if (__builtin_expect(!(condition), 0)) {         \
      throw exception(cw_ext::message(__VA_ARGS__)); \
    }                                                \
  } while (0)
#define CW_CHECK(condition, ...) CW_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define CW_CHECK_VALUE(condition, ...) CW_CHECK_AS(std::invalid_argument, condition, "ValueError: ", __VA_ARGS__)
#define CW_CHECK_INDEX(condition, ...) CW_CHECK_AS(std::out_of_range, condition, "IndexError: ", __VA_ARGS__)
#define CW_CHECK_TYPE(condition, ...) CW_CHECK_AS(std::runtime_error, condition, "TypeError: ", __VA_ARGS__)

// What libtorch says of its last error, or `otherwise`, where it does not say.
inline std::string torch_error(const std::string& otherwise) {
  const char* const what =
      torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  return what && *what ? what : otherwise;
}

// Calls a function of libtorch that returns an error code.
#define CW_TORCH(call) CW_CHECK((call) == AOTI_TORCH_SUCCESS, cw_ext::torch_error("libtorch could not do: " #call))

// ---- tensors --------------------------------------------------------------------------------------------------------

// A tensor that may be undefined, as a field. Torch's own allocates for each that is, which for the fields of a call takes
// longer than a small batch's loss.
class MaybeTensor : public Tensor {
 public:
  MaybeTensor() : Tensor(undefined()) {}
  MaybeTensor(const Tensor& x) : Tensor(x) {}
  MaybeTensor(Tensor&& x) noexcept : Tensor(std::move(x)) {}

 private:
  static const Tensor& undefined() {
    static const Tensor one;
    return one;
  }
};

struct Options {
  ScalarType dtype;
  Device device;

  Options with(ScalarType other) const { return {other, device}; }
};

inline Options options_of(const Tensor& x) { return {x.scalar_type(), x.device()}; }
inline Options options_of(const Tensor& x, ScalarType dtype) { return {dtype, x.device()}; }

// What an op of ATen that returns a tensor makes of these arguments, as torch::stable::detail::from() gives them.
template <typename... Arguments>
Tensor torch_op(const char* name, const char* overload, const Arguments&... arguments) {
  using torch::stable::detail::from;
  std::array<StableIValue, sizeof...(Arguments)> stack{from(arguments)...};
  CW_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS,
           torch_error(message("libtorch could not do ", name, ": out of memory, or another error")));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch_op("aten::contiguous", "", x, torch::headeronly::MemoryFormat::Contiguous);
}

// int32 or int64 → int64, contiguous.
inline Tensor as_long(const Tensor& x) {
  if (x.scalar_type() == kLong) return as_contiguous(x);
  return torch_op("aten::to", "dtype", x, kLong, false, false,
                  std::make_optional(torch::headeronly::MemoryFormat::Contiguous));
}

// ---- text -----------------------------------------------------------------------------------------------------------

// A string among an op's arguments. The headers of torch 2.11 to 2.13 lose the memory of each that is a std::string.
struct Text : std::string {
  using std::string::string;
};

// ---- threads --------------------------------------------------------------------------------------------------------

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

// body(begin, end) for parts of [begin, end), in libtorch's threads. Its exceptions come through: libtorch's own function
// would end the process or lose their type.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  struct Shared {
    const Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } shared{body, {}, {}};
  const auto run = [](int64_t first, int64_t last, void* context) {
    Shared& own = *static_cast<Shared*>(context);
    try {
      own.body(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(own.mutex);
      if (!own.error) own.error = std::current_exception();
    }
  };
  CW_TORCH(torch_parallel_for(begin, end, grain, run, &shared));
  if (shared.error) std::rethrow_exception(shared.error);
}

}  // namespace cw_ext

namespace torch::stable::detail {
template <>
struct ToImpl<cw_ext::Text> {
  static cw_ext::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    CW_TORCH(torch_string_length(handle, &length));
    CW_TORCH(torch_string_c_str(handle, &data));
    cw_ext::Text text(data, length);
    CW_TORCH(torch_delete_string(handle));
    return text;
  }
};
}  // namespace torch::stable::detail

namespace cw_cpu {
using namespace cw_ext;
}
namespace cw_cuda {
using namespace cw_ext;
}
