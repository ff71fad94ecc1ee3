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
  expect(logits.dim() > 0, "logits: expected shape (B, ...)");
  Adversarial p{};
  p.runs = logits.size(0);
  p.elements = elements_per_sample(logits);
  expect(p.runs > 0 && p.elements > 0, "logits: expected at least one sample and one element a sample");
  p.logits = samples_of(logits, logits, "logits");
  p.others = samples_of(call.others, logits, "others");
  expect(find_name(kAdversarialKindNames, call.kind.c_str(), &p.kind), "kind: unknown '", call.kind, "'");
  expect(call.others || !(is_paired(p.kind) || call.with_others_grad), "others: expected a tensor");
  expect(find_name(kReductionNames, call.reduction.c_str(), &p.reduction), "reduction: unknown '", call.reduction, "'");
  p.sign = call.raised ? -1 : 1;
  p.bound = call.bound == 0 ? INFINITY : call.bound;
  const bool is_each = p.reduction == Reduction::none;
  const double batch = static_cast<double>(p.runs), n = static_cast<double>(p.elements);
  p.divisor = (p.reduction == Reduction::sum ? 1 : is_each ? n : batch * n) * call.sigma * call.sigma;
  if (!is_each && logits.is_contiguous() && (!call.others || call.others->is_contiguous())) {
    // One run, not many short ones.
    p.elements *= p.runs;
    p.runs = 1;
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
