// The op denoising on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "denoising/cpu/loops.h"
#include "denoising/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

std::tuple<Tensor, Tensor, Tensor, Tensor> denoising(const DenoisingArguments& call) {
  fdkernels::Denoising p = denoising_of(call);
  const LossResults out(call.pred, p.reduction, call.with_grad, false, 0);
  p.gradient = call.with_grad ? out.gradient.data_ptr() : nullptr;
  const auto [divisor, power] = fdkernels::divisors_of(p, host_count(call.divisor));
  const double factor = 2 / divisor * power;
  const auto denoise =
      fdkernels::cpu::by_isa(fdkernels::baseline::denoising, fdkernels::v3::denoising, fdkernels::v4::denoising);
  std::vector<double> sums = fdkernels::cpu::sum_elements(
      p.batch, p.elements, threads(),
      [&](int64_t b, int64_t begin, int64_t end) { return denoise(p, b, begin, end, factor); });
  if (!out.per_sample) sums = {std::accumulate(sums.begin(), sums.end(), 0.0)};
  for (size_t b = 0; b < sums.size(); ++b) {
    out.set_loss(b, sums[b] / divisor);
    if (out.scaled) static_cast<float*>(out.unscale.data_ptr())[b] = static_cast<float>(1 / power);
  }
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("denoising_native", (&boxed<DenoisingArguments, std::tuple<Tensor, Tensor, Tensor, Tensor>, &denoising>));
}
