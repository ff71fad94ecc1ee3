// The op adversarial on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "adversarial/cpu/sums.h"
#include "adversarial/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

AdversarialResults::All adversarial(const AdversarialArguments& call) {
  fdkernels::Adversarial p = adversarial_of(call);
  const AdversarialResults out(call, p);
  out.loss.set_losses(fdkernels::cpu::sums_of_terms(p, threads()), p.divisor);
  out.gradient.set_unscale(1 / out.power);
  out.others_gradient.set_unscale(1 / out.power);
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("adversarial_native", (&boxed<AdversarialArguments, AdversarialResults::All, &adversarial>));
}
