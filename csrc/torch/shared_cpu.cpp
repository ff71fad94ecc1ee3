// The backward of every loss, on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "core/cpu/scale.h"
#include "torch/cpu_threads.h"
#include "torch/operands.h"

namespace {

using namespace fdkernels::ops;

// out = upstream * unscale * gradient of each, for the whole batch or per sample.
void scale_into(const Tensors& gradients, const Tensor& upstream, const Tensors& unscales, const Tensors& outs) {
  expect_pairs(gradients, unscales);
  for (size_t n = 0; n < gradients.size(); ++n) {
    const Tensor &gradient = gradients[n], &unscale = unscales[n], &out = outs[n];
    const bool per_sample = is_per_sample(gradient, upstream, unscale, out);
    const int64_t batch = gradient.size(0), count = per_sample ? batch : 1;
    std::vector<double> factor = to_double(upstream, count, "upstream");
    if (unscale.numel() > 0) {
      const std::vector<double> power = to_double(unscale, count, "unscale");
      for (int64_t b = 0; b < count; ++b) factor[b] *= power[b];
    }
    fdkernels::cpu::scale_gradient(gradient.data_ptr(), dtype_of(gradient, "gradient"), batch,
                                   elements_per_sample(gradient), factor.data(), per_sample, out.data_ptr(), threads());
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("scale_native", TORCH_BOX(&scale_op<&scale_into>));
  m.impl("scale_native_", TORCH_BOX(&scale_in_place_op<&scale_into>));
}
