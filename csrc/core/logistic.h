// softplus(x) = log(1 + e^x) and its derivative, the sigmoid, in double: exact to a few units in the last place at any
// x, in both tails, without overflow.
//
// Nothing but additions, products, one division and polynomials: loops vectorize.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cmath>

#include "core/numbers.h"

namespace fdkernels {

namespace {

constexpr double kLog2 = 0.693147180559945309417232121458176568;

// v 2^n for n from -2044 to 0, rounded once where the result is subnormal.
FDK_HOST_DEVICE inline double scaled_down(double v, int64_t n) {
  const int64_t half = n >> 1;
  return v * std::bit_cast<double>((half + 1023) << 52) * std::bit_cast<double>((n - half + 1023) << 52);
}

// e^x for x <= 0.
FDK_HOST_DEVICE inline double exp_below_0(double x) {
  constexpr double kShift = 0x1.8p52;              // adding it rounds to an integer, which the low bits then hold
  const double y = either(x < -800.0, -800.0, x);  // NaN stays NaN
  const double shifted = y * (1 / kLog2) + kShift, n = shifted - kShift;
  const double r = (y - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;  // y - n log 2, |r| <= log(2) / 2
  double p = 1.0 / 6227020800;                                                  // Taylor's series up to r^13 / 13!
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = (p * r + 1.0) * r + 1.0;
  return scaled_down(p, static_cast<int64_t>(std::bit_cast<uint64_t>(shifted) - std::bit_cast<uint64_t>(kShift)));
}

struct Softplus {
  double value, slope;
};

FDK_HOST_DEVICE inline Softplus softplus_with_slope(double x) {
  const double u = exp_below_0(-::fabs(x));
  // log(1 + u) = log(2)·upper + 2 atanh(s), |s| <= 0.172, with s = u / (2 + u), or s = (u - 1) / (u + 3) for upper u.
  const bool upper = u > 0.41421356;
  const double top = either(upper, u - 1.0, u), bottom = either(upper, u + 3.0, u + 2.0), whole = 1.0 + u;
  const double inverse = 1.0 / (whole * bottom);  // of both divisors at once
  const double s = top * (inverse * whole), square = s * s;
  // atanh(s) / s = 1 + s^2 / 3 + s^4 / 5 + ... up to s^18 / 19
  double p = 1.0 / 19;
  p = p * square + 1.0 / 17;
  p = p * square + 1.0 / 15;
  p = p * square + 1.0 / 13;
  p = p * square + 1.0 / 11;
  p = p * square + 1.0 / 9;
  p = p * square + 1.0 / 7;
  p = p * square + 1.0 / 5;
  p = p * square + 1.0 / 3;
  const double log1p = either(upper, kLog2, 0.0) + 2.0 * (s + s * square * p);
  return {either(x > 0, x, 0.0) + log1p, either(x < 0, u, 1.0) * (inverse * bottom)};
}

}  // namespace

}  // namespace fdkernels
