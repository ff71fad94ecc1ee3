// The arguments of the op adversarial as a struct, and the raw operands and results made from them.
#pragma once

#include <cmath>

#include "adversarial/arguments.h"
#include "adversarial/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct AdversarialArguments {
  FDK_ARGUMENTS(FDK_ADVERSARIAL_ARGUMENTS)
};

// Without its gradients.
inline Adversarial adversarial_of(const AdversarialArguments& call) {
  const Tensor& logits = call.logits;
  Adversarial p{};
  set_extent(logits, "logits", &p);
  p.logits = samples_of(logits, logits, "logits");
  p.others = samples_of(call.others, logits, "others");
  set_choice(kAdversarialKindNames, call.kind, "kind", &p.kind);
  expect(call.others || !(is_paired(p.kind) || call.with_others_grad), "others: expected a tensor");
  set_choice(kReductionNames, call.reduction, "reduction", &p.reduction);
  p.sign = call.raised ? -1 : 1;
  p.bound = call.bound == 0 ? INFINITY : call.bound;
  const bool is_each = p.reduction == Reduction::none;
  const double batch = static_cast<double>(p.batch), n = static_cast<double>(p.elements);
  p.divisor = (p.reduction == Reduction::sum ? 1 : is_each ? n : batch * n) * call.sigma * call.sigma;
  if (!is_each && logits.is_contiguous() && (!call.others || call.others->is_contiguous())) {
    // One long sample, not many short ones.
    p.elements *= p.batch;
    p.batch = 1;
  }
  return p;
}

struct AdversarialResults {
  LossResult loss;
  GradientResult gradient, others_gradient;
  double power;  // of two, times which a float16 gradient is stored

  // Sets the gradients of `p`.
  AdversarialResults(const AdversarialArguments& call, Adversarial& p)
      : loss(call.logits, p.reduction),
        gradient(call.logits, loss, call.with_grad),
        others_gradient(call.others ? *call.others : call.logits, loss, call.with_others_grad) {
    // No derivative is above 1, but for square's: 2^15 keeps small ones from float16's subnormal numbers.
    power = float16_power(p.divisor) * (p.kind == AdversarialKind::square ? 1 : 0x1p15);
    p.gradient = {gradient.data(), (gradient.scaled ? power : 1) / p.divisor};
    p.others_gradient = {others_gradient.data(), (others_gradient.scaled ? power : 1) / p.divisor};
  }

  using All = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  All all() const {
    return {loss.loss, gradient.gradient, gradient.unscale, others_gradient.gradient, others_gradient.unscale};
  }
};

}  // namespace fdkernels::ops
