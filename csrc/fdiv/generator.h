// The generator's term of the op fdiv, weight * sum_bk softplus(-l_bk) / divisor, and the gradient of its logits l, for
// every device.
#pragma once

#include "core/vectors.h"
#include "fdiv/divergences.h"

namespace fdkernels {

struct Generator {
  Samples logits;  // (B, heads), contiguous; absent if the call has no such term
  int64_t heads;
  double weight, divisor;
  bool drops;      // samples whose mean over heads is not finite
  void* gradient;  // shaped like the logits, times float16_power(divisor) in float16; null: none
  float* unscale;  // one value, or one per sample with Reduction::none; null: none
  double* sums;    // CUDA: of each sample's softplus

  FDK_HOST_DEVICE double power() const {
    return unscale != nullptr ? float16_power(divisor) : 1.0;
  }
};

// The sum over heads first, first + step, ... of sample b.
FDK_HOST_DEVICE inline double sum_of_logits(const Generator& g, int64_t b, int64_t first, int64_t step) {
  double sum = 0;
  for (int64_t k = first; k < g.heads; k += step) {
    double logit[1] = {0};
    read<AnyType>(g.logits, b, k, logit);
    sum += logit[0];
  }
  return sum;
}

// The sum of softplus(-l) over heads first, first + step, ... of sample b; stores their gradient. used: else both are
// 0.
FDK_HOST_DEVICE inline double add_logits(const Generator& g, int64_t b, int64_t first, int64_t step, bool used) {
  const double factor = -g.weight / g.divisor * g.power();
  double sum = 0;
  for (int64_t k = first; k < g.heads; k += step) {
    double logit[1] = {0}, gradient[1] = {0};
    read<AnyType>(g.logits, b, k, logit);
    if (used) {
      const double small = exponential(-::fabs(logit[0]));  // softplus(-l) = max(-l, 0) + log(1 + e^-|l|)
      sum += (logit[0] < 0 ? -logit[0] : 0.0) + ::log1p(small);
      gradient[0] = factor * (logit[0] < 0 ? 1.0 : small) / (1 + small);
    }
    if (g.gradient != nullptr) write<AnyType>(g.gradient, g.logits.dtype, b * g.heads + k, gradient);
  }
  return sum;
}

}  // namespace fdkernels
