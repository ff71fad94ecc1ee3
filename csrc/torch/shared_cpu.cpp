// The backward of every loss, on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "core/cpu/scale.h"
#include "torch/cpu_threads.h"
#include "torch/operands.h"

namespace {

using namespace fdkernels::ops;

// What multiplies a gradient, once or for each sample: upstream * unscale.
std::vector<double> factor_of(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale,
                              const Tensor& out) {
  const int64_t count = is_per_sample(gradient, upstream, unscale, out) ? gradient.size(0) : 1;
  dtype_of(gradient, "gradient");
  std::vector<double> factor = to_double(upstream, count, "upstream");
  if (unscale.numel() > 0) {
    const std::vector<double> power = to_double(unscale, count, "unscale");
    for (int64_t b = 0; b < count; ++b) factor[b] *= power[b];
  }
  return factor;
}

// Checks all gradients before it writes the first.
void scale_into(const Tensors& gradients, const Tensor& upstream, const Tensors& unscales, const Tensors& outs) {
  expect_pairs(gradients, unscales);
  std::vector<std::vector<double>> factors;
  for (size_t n = 0; n < gradients.size(); ++n) {
    factors.push_back(factor_of(gradients[n], upstream, unscales[n], outs[n]));
  }
  for (size_t n = 0; n < gradients.size(); ++n) {
    const Tensor& gradient = gradients[n];
    fdkernels::cpu::scale_gradient(gradient.data_ptr(), dtype_of(gradient, "gradient"), gradient.size(0),
                                   elements_per_sample(gradient), factors[n].data(), upstream.dim() == 1,
                                   outs[n].data_ptr(), threads());
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("scale_native", TORCH_BOX(&scale_op<&scale_into>));
  m.impl("scale_native_", TORCH_BOX(&scale_in_place_op<&scale_into>));
}
