// The f-divergence weights h(r) = r^2 f''(r) as functions of the log ratio L = log r, for host and device.
//
// Everything stays in the log domain: log h is affine in L and softplus(L), which neither overflows nor cancels for
// any finite L. The same table stands in fdkernels/divergences.py; a test compares the two.
#pragma once

#include <cmath>

#include "core/logistic.h"
#include "core/names.h"

namespace fdkernels {

FDK_HOST_DEVICE FDK_CALLED double exponential(double x) {
  return ::exp(x);
}

FDK_HOST_DEVICE FDK_CALLED double logarithm(double x) {
  return ::log(x);
}

// log(1 + e^x) without overflow, exact to rounding in both tails.
FDK_HOST_DEVICE FDK_CALLED double softplus(double x) {
  return softplus_with_slope(x).value;
}

// X(name, log h) with L = log r; `a` is the parameter of Amari's alpha family and of nothing else.
#define FDK_DIVERGENCES(X)                       \
  X(rkl, 0.0)                                    \
  X(kl, L)                                       \
  X(js, -softplus(-L))                           \
  X(softened_rkl, -softplus(L))                  \
  X(squared_hellinger, 0.5 * L - 2 * kLog2)      \
  X(jeffreys, softplus(L))                       \
  X(neyman, kLog2 - L)                           \
  X(pearson, kLog2 + 2 * L)                      \
  X(le_cam, 3 * kLog2 + 2 * L - 3 * softplus(L)) \
  X(alpha, a* L)

enum class Divergence : int { FDK_DIVERGENCES(FDK_ENUMERATOR) };
constexpr const char* kDivergenceNames[] = {FDK_DIVERGENCES(FDK_NAME)};

// log h(r) at L = log r.
FDK_HOST_DEVICE inline double log_weight(Divergence divergence, double L, double a) {
  switch (divergence) {
#define FDK_CASE(name, log_h) \
  case Divergence::name:      \
    return log_h;
    FDK_DIVERGENCES(FDK_CASE)
#undef FDK_CASE
  }
  return NAN;
}

}  // namespace fdkernels
