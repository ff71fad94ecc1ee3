// The operators that all losses share, on CUDA tensors: the backward, and a device's limits.
#include <torch/csrc/stable/library.h>

#include "core/cuda/scale.h"
#include "torch/cuda_target.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;

// out = upstream * unscale * gradient, for the whole batch or per sample. powers holds unscale until the launch.
cuda::Scale scale_of(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out,
                     Tensors& powers) {
  cuda::Scale scale{};
  const bool each = is_per_sample(gradient, upstream, unscale, out);
  scale.runs = each ? gradient.size(0) : 1;
  scale.elements = scale.runs == 0 ? 0 : gradient.numel() / scale.runs;
  scale.gradient = gradient.data_ptr();
  scale.out = out.data_ptr();
  scale.dtype = dtype_of(gradient, "gradient");
  // Upstream is read in place, even with a stride of 0, which loss.sum() gives it.
  const auto type = real_type(upstream.scalar_type());
  expect(type.has_value(), "upstream: expected a real dtype");
  scale.upstream = {upstream.data_ptr(), *type};
  scale.upstream_stride = each ? upstream.stride(0) : 0;
  Tensor& power = powers.emplace_back(unscale);
  if (power.scalar_type() != ScalarType::Float) power = torch::stable::to(power, ScalarType::Float);
  if (!power.is_contiguous()) power = torch::stable::contiguous(power);
  scale.unscale = power.numel() > 0 ? static_cast<const float*>(power.data_ptr()) : nullptr;
  scale.aligned = reinterpret_cast<uintptr_t>(scale.gradient) % 16 == 0 &&
                  reinterpret_cast<uintptr_t>(scale.out) % 16 == 0 &&
                  (scale.runs == 1 || scale.elements * fdkernels::size_of(scale.dtype) % 16 == 0);
  return scale;
}

void scale_into(const Tensors& gradients, const Tensor& upstream, const Tensors& unscales, const Tensors& outs) {
  expect_pairs(gradients, unscales);
  const Target target(gradients[0], "gradient");
  std::vector<cuda::Scale> scales;
  Tensors powers;
  for (size_t n = 0; n < gradients.size(); ++n) {
    expect(same_device(gradients[n], gradients[0]), "gradients: expected one device");
    const cuda::Scale scale = scale_of(gradients[n], upstream, unscales[n], outs[n], powers);
    if (gradients[n].numel() > 0) scales.push_back(scale);
  }
  cuda::launch_scale(scales, target.limits->multiprocessors, target.stream);
}

// A device's limits, from which plans are made, in the order of DeviceLimits.
Tensor cuda_limits(int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  cuda::set_device(static_cast<int>(device));
  const fdkernels::DeviceLimits& limits = cuda::limits(static_cast<int>(device));
  const int64_t count = 6 + fdkernels::kClusterSizes, one = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &count, &one, static_cast<int32_t>(ScalarType::Double),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor values(handle);
  double* to = static_cast<double*>(values.data_ptr());
  to[0] = limits.capability, to[1] = limits.multiprocessors;
  to[2] = static_cast<double>(limits.shared_per_block), to[3] = static_cast<double>(limits.shared_per_multiprocessor);
  to[4] = static_cast<double>(limits.cache), to[5] = limits.bandwidth;
  for (int i = 0; i < fdkernels::kClusterSizes; ++i) to[6 + i] = limits.active_clusters[i];
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("scale_native", TORCH_BOX(&scale_op<&scale_into>));
  m.impl("scale_native_", TORCH_BOX(&scale_in_place_op<&scale_into>));
}

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_limits", TORCH_BOX(&cuda_limits));
}
