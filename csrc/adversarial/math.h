// The op adversarial (generator_loss, discriminator_loss, gradient_penalty) without torch: a call as raw pointers, and
// the math of one element, for every device. In double.
//
//   loss = sum of the terms of all elements / divisor, with s = -1 if the logits a are raised, else 1, and others b:
//
//   logistic      softplus(s a) + softplus(-s b)
//   hinge         relu(1 + s a) + relu(1 - s b)
//   linear        s a - s b
//   relativistic  softplus(s (a - b))
//   square        (a - b)^2
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include "core/logistic.h"
#include "core/tensors.h"

namespace fdkernels {

#define FDK_ADVERSARIAL_KINDS(X) X(logistic) X(hinge) X(linear) X(relativistic) X(square)
enum class AdversarialKind : int8_t { FDK_ADVERSARIAL_KINDS(FDK_ENUMERATOR) };
constexpr const char* kAdversarialKindNames[] = {FDK_ADVERSARIAL_KINDS(FDK_NAME)};

// A gradient: contiguous, in its input's dtype; null: not wanted.
struct LogitGradient {
  void* data;
  double by;  // what the terms' derivatives are multiplied by: a power of two over the divisor
};

struct Adversarial {
  int64_t batch, elements;  // elements of a sample; where samples need no sums of their own, all are one
  Samples logits, others;
  AdversarialKind kind;
  Reduction reduction;
  double sign, bound, divisor;  // bound: of the clamp, or infinity
  LogitGradient gradient, others_gradient;
};

namespace {

// Whether the elements of logits and others are taken in pairs.
FDK_HOST_DEVICE constexpr bool is_paired(AdversarialKind kind) {
  return kind == AdversarialKind::relativistic || kind == AdversarialKind::square;
}

struct Term {
  double value, slope;
};

FDK_HOST_DEVICE inline Term term_of(AdversarialKind kind, double v, double sign) {
  const double u = sign * v;
  if (kind == AdversarialKind::hinge) return {u <= -1.0 ? 0.0 : 1.0 + u, u > -1.0 ? sign : 0.0};
  if (kind == AdversarialKind::linear) return {u, sign};
  if (kind == AdversarialKind::square) return {v * v, 2.0 * v};
  const Softplus of = softplus_with_slope(u);
  return {of.value, sign * of.slope};
}

template <bool kClamps>
FDK_HOST_DEVICE inline double clamped(double v, double bound) {
  if constexpr (!kClamps) return v;
  return v > bound ? bound : v < -bound ? -bound : v;
}

// The clamp stops the gradient of what it changes. A logit that is NaN has no slope, which hinge and linear do not see.
template <AdversarialKind kind, bool kClamps>
FDK_HOST_DEVICE inline double gradient_at(double logit, double bound, double slope, double by) {
  constexpr bool kSeesNaN = kind == AdversarialKind::logistic || is_paired(kind);
  if constexpr (!kClamps && kSeesNaN) return slope * by;
  const double within = ::fabs(logit) > bound ? 0.0 : slope * by;
  return kSeesNaN ? within : logit == logit ? within : logit;
}

}  // namespace

}  // namespace fdkernels
