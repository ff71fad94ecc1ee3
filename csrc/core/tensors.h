// An op's operands as raw pointers, without torch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/names.h"
#include "core/numbers.h"

namespace fdkernels {

enum class DType : int8_t { f32, f64, bf16, f16 };

FDK_HOST_DEVICE constexpr int size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

struct AnyType {};  // a stored type that is looked up at run time

// Keep functions in the unnamed namespace: see core/numbers.h.
namespace {

// Calls body(S{}), where S is Stored, or the type that `dtype` names if Stored is AnyType.
template <class Stored, class Body>
FDK_HOST_DEVICE inline void with_type(DType dtype, const Body& body) {
  if constexpr (!std::is_same_v<Stored, AnyType>) {
    body(Stored{});
  } else {
    switch (dtype) {
      case DType::f32:
        return body(float{});
      case DType::f64:
        return body(double{});
      case DType::bf16:
        return body(Bf16{});
      case DType::f16:
        return body(Half{});
    }
  }
}

}  // namespace

// An N-sized tensor, of the student's shape: each sample is one dense run of elements. Absent if data is null.
struct Samples {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch_stride = 0;
};

// A small operand: element i of sample b reads entry (i / inner) % entries of row b. A stride of 0 shares one row.
struct Table {
  const void* data = nullptr;
  DType dtype = DType::f32;  // float32 or float64; unused for masks, which have one byte per entry
  int64_t batch_stride = 0;
  int64_t entries = 1;
  int64_t inner = 1;
  double fixed = 1;  // every element's value if data is null
};

#define FDK_REDUCTIONS(X) X(mean) X(sum) X(none)
enum class Reduction : int8_t { FDK_REDUCTIONS(FDK_ENUMERATOR) };
constexpr const char* kReductionNames[] = {FDK_REDUCTIONS(FDK_NAME)};

}  // namespace fdkernels
