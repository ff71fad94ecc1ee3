// Makes a struct from an op's list of arguments, X(kind, name) as in csrc/fdiv/arguments.h, and fills it from a call.
//
//   struct FdivArguments { FDK_ARGUMENTS(FDK_FDIV_ARGUMENTS) };
//   m.impl("fdiv_native", &boxed<FdivArguments, FdivResults, &fdiv>);
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fdkernels::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- errors

inline std::string said(const std::string& text) {
  return text;
}

template <class Number>
  requires std::is_arithmetic_v<Number>
std::string said(Number number) {
  return std::to_string(number);
}

// Use no C++ stream here, nor STD_TORCH_CHECK, which uses one. Some toolchains link the C++ runtime into this library;
// if the process has another one, a stream of the one uses locales of the other, and crashes.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw std::runtime_error((said(parts) + ...));
}

template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (!condition) refuse(parts...);
}

// ---- kinds, with the names of fdkernels/_op/arguments.py

struct TableArgument {
  OptionalTensor entries;
  int64_t inner;
};

namespace kinds {

using samples = Tensor;
using samples_or_none = OptionalTensor;
using logits_or_none = OptionalTensor;
using per_sample_or_none = OptionalTensor;
using scalar_or_none = OptionalTensor;
using seed_or_none = OptionalTensor;
using state_or_none = OptionalTensor;
using edges_or_none = OptionalTensor;
using table = TableArgument;
struct mask : TableArgument {};
using number = double;
using flag = bool;
using choice = std::string;

}  // namespace kinds

// A struct's fields, and each(), which calls use(name, field) in the order of the list.
#define FDK_FIELD(kind, name) kinds::kind name;
#define FDK_USE(kind, name) use(#name, name);
#define FDK_ARGUMENTS(LIST)   \
  LIST(FDK_FIELD)             \
  template <class Use>        \
  void each(const Use& use) { \
    LIST(FDK_USE)             \
  }

// ---- from a call's stack

class Stack {
 public:
  Stack(StableIValue* values, uint64_t count) : values_(values), count_(count) {}

  template <class Value>
  void take(Value& to) {
    if constexpr (std::is_base_of_v<TableArgument, Value>) {
      take(to.entries);
      take(to.inner);
    } else {
      expect(at_ < count_, "the op's schema has fewer arguments than its implementation");
      to = torch::stable::detail::to<Value>(values_[at_++]);
    }
  }

  void end() const {
    expect(at_ == count_, "the op's schema has more arguments than its implementation");
  }

 private:
  StableIValue* values_;
  uint64_t count_, at_ = 0;
};

// Overwrites the call's floats, in the order of its list, with `numbers`. A call has `numbers` if a graph computes some
// of its floats, which nothing has checked before.
template <class Arguments>
void take_numbers(Arguments& call, const Tensor& numbers) {
  int64_t count = 0;
  call.each([&](const char*, auto& field) { count += std::is_same_v<decltype(field), double&>; });
  expect(numbers.is_cpu() && numbers.dim() == 1 && numbers.size(0) == count && numbers.is_contiguous() &&
             numbers.scalar_type() == ScalarType::Double,
         "numbers: expected ", count, " contiguous float64 values on the CPU");
  const double* value = static_cast<const double*>(numbers.data_ptr());
  call.each([&](const char* name, auto& field) {
    if constexpr (std::is_same_v<decltype(field), double&>) {
      expect(std::isfinite(*value), name, ": expected a finite number, got ", *value);
      field = *value++;
    }
  });
}

template <class Arguments>
Arguments unpacked(StableIValue* stack, uint64_t count) {
  Stack values(stack, count);
  Arguments call{};
  call.each([&](const char* name, auto& field) {
    values.take(field);
    if constexpr (std::is_same_v<decltype(field), Tensor&>) expect(field.defined(), name, ": expected a tensor");
  });
  OptionalTensor numbers;
  values.take(numbers);
  values.end();
  if (numbers) take_numbers(call, *numbers);
  return call;
}

// The implementation of an op as libtorch calls it.
template <class Arguments, class Results, Results (*kRun)(const Arguments&)>
void boxed(StableIValue* stack, uint64_t count, uint64_t) {
  const Results results = kRun(unpacked<Arguments>(stack, count));
  std::apply(
      [&](const auto&... result) {
        size_t at = 0;
        ((stack[at++] = torch::stable::detail::from(result)), ...);
      },
      results);
}

}  // namespace fdkernels::ops
