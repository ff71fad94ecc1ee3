// Small operands of any real type, such as logits and t. Kernels convert them to double as they read them.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fdkernels::cuda {

enum class RealType : int8_t { f32, f64, bf16, f16, i64, i32, i16, i8, u8 };

FDK_HOST_DEVICE constexpr int bytes_of(RealType type) {
  switch (type) {
    case RealType::f64:
    case RealType::i64:
      return 8;
    case RealType::f32:
    case RealType::i32:
      return 4;
    case RealType::i8:
    case RealType::u8:
      return 1;
    default:
      return 2;
  }
}

// Values in memory, mostly one per sample (logits: `heads` per sample). Absent if data is null.
struct Reals {
  const void* data = nullptr;
  RealType type = RealType::f32;
};

}  // namespace fdkernels::cuda
