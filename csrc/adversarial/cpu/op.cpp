// The op adversarial on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "adversarial/cpu/loops.h"
#include "adversarial/operands.h"
#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

// Where other processes keep the cores busy, a thread that waits for another one costs milliseconds: share nothing that
// takes less than a tenth of one.
constexpr int64_t kGrain = 65536;

AdversarialResults::All adversarial(const AdversarialArguments& call) {
  fdkernels::Adversarial p = adversarial_of(call);
  const AdversarialResults out(call, p);
  const auto sum =
      fdkernels::cpu::by_isa(fdkernels::baseline::adversarial, fdkernels::v3::adversarial, fdkernels::v4::adversarial);
  const std::vector<double> sums = fdkernels::cpu::sum_elements(
      p.batch, p.elements, threads(), [&](int64_t b, int64_t begin, int64_t end) { return sum(p, b, begin, end); },
      kGrain);
  out.loss.set_losses(sums, p.divisor);
  out.gradient.set_unscale(1 / out.power);
  out.others_gradient.set_unscale(1 / out.power);
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("adversarial_native", (&boxed<AdversarialArguments, AdversarialResults::All, &adversarial>));
}
