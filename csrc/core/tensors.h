// An op's operands as raw pointers, without torch.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/names.h"

namespace fdkernels {

enum class DType : int8_t { f32, f64, bf16, f16 };

FDK_HOST_DEVICE constexpr int size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

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
