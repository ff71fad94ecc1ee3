// The op fdiv's math on one element, for every device. With guided raw predictions f and tau:
//
//   gap        c (f - tau)
//   direction  m gap, m the multiplier; 0 if masked. The gradient is w / N times the direction.
//   error      x - x0, x0 = a x_t + c tau
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cmath>

#include "core/affine.h"
#include "fdiv/problem.h"

namespace fdkernels {

namespace {

// A guided prediction.
template <class T>
FDK_HOST_DEVICE inline T guided(T cond, T uncond, T scale) {
  return uncond + scale * (cond - uncond);
}

template <class T>
FDK_HOST_DEVICE inline T gap_of(T tau, T f, T c) {
  return c * (f - tau);
}

// What an element adds to a sample's sums.
template <class T, class Error>
struct Added {
  Error distance;
  T energy, gap;
};

// counts: whether its gap and error do, as those of masked elements do without kept_only.
template <class T, class Error, class Keep>
FDK_HOST_DEVICE inline Added<T, Error> added(T gap, T direction, Error error, Keep counts) {
  return {kept_or_zero(magnitude(error), counts), direction * direction, kept_or_zero(magnitude(gap), counts)};
}

// An element's operands in double, for the case that sums in float overflowed, underflowed or met a NaN. An absent one
// has its neutral value.
struct Element {
  double x = 0, tau = 0, f = 0, noisy = 0, a = 0, c = 1, multiplier = 1;
  bool keep = true;
};

// a and c of element i. Not inlined (FDK_CALLED), since a thread looks this up only once per run.
FDK_HOST_DEVICE FDK_CALLED Map map_at(const Problem& p, int64_t b, int64_t i) {
  if (!p.is_raw()) return {0, 1};
  Map map = coefficients_of(p.prediction, table_value(p.alpha, b, i), table_value(p.sigma, b, i), p.sigma_data);
  if (p.noisy.data == nullptr) map.a = 0;
  return map;
}

// What element i reads from tables.
FDK_HOST_DEVICE inline Element element_at(const Problem& p, int64_t b, int64_t i) {
  Element e;
  const Map map = map_at(p, b, i);
  e.a = map.a, e.c = map.c;
  if (has_table(p.multiplier)) e.multiplier = table_value(p.multiplier, b, i);
  e.keep = (kept_bits<1>(p.mask, b, i) & 1) != 0;
  return e;
}

// with_error: whether x was read. Without the dmd scale, the loss does not depend on x.
FDK_HOST_DEVICE inline void add_carefully(Sums& sums, const Element& e, const Problem& p, bool with_error) {
  const double gap = gap_of(e.tau, e.f, e.c), direction = kept_or_zero(e.multiplier * gap, e.keep);
  const double error = with_error ? error_of(e.x, e.noisy, e.tau, e.a, e.c) : 0.0;
  // A masked element that is not finite never counts.
  const bool masked = !e.keep && !p.kept_only;
  const Added<double, double> each = added(gap, direction, error, true);
  sums.energy += each.energy;
  if (e.keep || (masked && is_finite(gap))) sums.gap += each.gap;
  if (e.keep || (masked && is_finite(error))) sums.distance += each.distance;
  bool finite = is_finite(e.tau) && is_finite(e.f) && is_finite(e.c) && is_finite(e.multiplier);
  if (with_error && p.dmd_scale) finite = finite && is_finite(e.x) && is_finite(e.noisy) && is_finite(e.a);
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
