// The op denoising on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "denoising/cpu/loops.h"
#include "denoising/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

DenoisingResults denoising(const DenoisingArguments& call) {
  fdkernels::Denoising p = denoising_of(call);
  const LossResult out(call.pred, p.reduction);
  const GradientResult gradient(call.pred, out, call.with_grad);
  p.gradient = gradient.data();
  const auto [divisor, power] = fdkernels::divisors_of(p, host_count(call.divisor));
  const double factor = 2 / divisor * power;
  const auto denoise =
      fdkernels::cpu::by_isa(fdkernels::baseline::denoising, fdkernels::v3::denoising, fdkernels::v4::denoising);
  const std::vector<double> sums = fdkernels::cpu::sum_elements(
      p.batch, p.elements, threads(),
      [&](int64_t b, int64_t begin, int64_t end) { return denoise(p, b, begin, end, factor); });
  out.set_losses(sums, divisor);
  gradient.set_unscale(1 / power);
  return {out.loss, gradient.gradient, gradient.unscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("denoising_native", (&boxed<DenoisingArguments, DenoisingResults, &denoising>));
}
