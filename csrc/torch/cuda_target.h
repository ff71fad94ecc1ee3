// The device of a call on CUDA tensors: its stream, dense operands, workspace memory.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "core/cuda/device.h"
#include "core/cuda/reals.h"
#include "torch/operands.h"

namespace fdkernels::ops {

// The device of a call, current while this lives, and its current stream.
struct Target {
  Target(const Tensor& like, const char* name) : device(index_of(like, name)), guard(device) {
    cuda::set_device(device);
    stream = cuda::current_stream(device);
    limits = &cuda::limits(device);  // the first call loads kernels, even if it is captured
  }

  // The dispatcher sends a call here if any of its tensors is on CUDA; this one may not be.
  static int index_of(const Tensor& tensor, const char* name) {
    expect(tensor.is_cuda(), name, ": expected a CUDA tensor");
    return tensor.get_device_index();
  }

  int device;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
  const DeviceLimits* limits = nullptr;
};

// Dense values of a type that kernels read. `tensor` keeps a converted copy alive until the launches that read it are
// queued: later work on this stream may then reuse its memory.
struct RealValues {
  Tensor tensor;
  cuda::Reals reals;
};

inline std::optional<cuda::RealType> real_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return cuda::RealType::f32;
    case ScalarType::Double:
      return cuda::RealType::f64;
    case ScalarType::BFloat16:
      return cuda::RealType::bf16;
    case ScalarType::Half:
      return cuda::RealType::f16;
    case ScalarType::Long:
      return cuda::RealType::i64;
    case ScalarType::Int:
      return cuda::RealType::i32;
    case ScalarType::Short:
      return cuda::RealType::i16;
    case ScalarType::Char:
      return cuda::RealType::i8;
    case ScalarType::Byte:
      return cuda::RealType::u8;
    default:
      return std::nullopt;
  }
}

inline RealValues real_values(const Tensor& given, const Tensor& like, int64_t count, const char* name) {
  expect(same_device(given, like) && given.numel() == count, name, ": expected ", count,
         " values on the others' device");
  expect_real(given, name);
  const bool readable = real_type(given.scalar_type()).has_value();
  Tensor dense = readable ? given : torch::stable::to(given, ScalarType::Double);
  if (!dense.is_contiguous()) dense = torch::stable::contiguous(dense);
  return {dense, {dense.data_ptr(), *real_type(dense.scalar_type())}};
}

// One value per sample.
inline RealValues per_sample(const OptionalTensor& given, const Tensor& like, int64_t batch, const char* name) {
  if (!given) return {like, {}};
  expect(given->dim() == 1, name, ": expected shape (B,)");
  return real_values(*given, like, batch, name);
}

// The divisor of a mean, if the call gives it on the device.
inline RealValues device_count(const OptionalTensor& divisor, const Tensor& like) {
  if (!divisor || divisor->is_cpu()) return {like, {}};
  return real_values(*divisor, like, 1, "divisor");
}

// Doubles on the device, handed out in pieces that are aligned to 16 bytes.
class Workspace {
 public:
  Workspace(int64_t doubles, const Tensor& like) : tensor_(new_tensor({doubles}, ScalarType::Double, like)) {
    next_ = static_cast<double*>(tensor_.data_ptr());
  }

  static int64_t padded(int64_t doubles) {
    return (doubles + 1) / 2 * 2;
  }

  double* take(int64_t doubles) {
    double* taken = next_;
    next_ += padded(doubles);
    return taken;
  }

 private:
  Tensor tensor_;
  double* next_;
};

}  // namespace fdkernels::ops
