// The op fdiv's sums over one element in double, for the case that sums in float overflowed, underflowed or met a NaN.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include "core/numbers.h"
#include "fdiv/problem.h"

namespace fdkernels {

namespace {

// A guided prediction.
template <class T>
FDK_HOST_DEVICE inline T guided(T cond, T uncond, T scale) {
  return uncond + scale * (cond - uncond);
}

// An absent operand has its neutral value. tau and f are raw predictions.
struct Element {
  double x = 0, tau = 0, f = 0, noisy = 0, a = 0, c = 1, multiplier = 1;
  bool keep = true;
};

// with_error: whether x was read. Without the dmd scale, the loss does not depend on x.
FDK_HOST_DEVICE inline void add_carefully(Sums& sums, const Element& e, const Problem& p, bool with_error) {
  const double d = e.c * (e.f - e.tau);
  bool finite = is_finite(e.tau) && is_finite(e.f) && is_finite(e.c) && is_finite(e.multiplier);
  if (e.keep || (!p.kept_only && is_finite(d))) sums.gap += ::fabs(d);
  if (e.keep) sums.energy += e.multiplier * d * e.multiplier * d;
  if (with_error) {
    const double error = e.x - (e.a * e.noisy + e.c * e.tau);
    if (e.keep || (!p.kept_only && is_finite(error))) sums.distance += ::fabs(error);
    if (p.dmd_scale) finite = finite && is_finite(e.x) && is_finite(e.noisy) && is_finite(e.a);
  }
  sums.nonfinite = sums.nonfinite || (e.keep && !finite);
}

// Whether sums in T can be used as they are. They must be finite. In float, the squares must also be so large that no
// underflow matters, or reach, the sum of |m c (f - tau)|, must be 0: f = tau (a fake score that starts as the
// teacher), or all elements are masked.
template <class T, class Sum>
FDK_HOST_DEVICE inline bool trustworthy(Sum energy, Sum gap, Sum reach) {
  if (!(is_finite(energy) && is_finite(gap))) return false;
  return sizeof(T) == sizeof(double) || energy > Sum(1e-28) || reach == 0;
}

}  // namespace

}  // namespace fdkernels
