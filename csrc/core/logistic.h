// softplus(x) = log(1 + e^x) and its derivative, the sigmoid, in double: relative errors are below 1e-15 in both tails,
// and nothing overflows. e^-|x| below 2.3e-308 counts as 0.
//
// Nothing but additions, products, one division, selections and polynomials: loops vectorize.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cmath>

#include "core/numbers.h"

namespace fdkernels {

namespace {

constexpr double kLog2 = 0.693147180559945309417232121458176568;

// e^x for x <= 0.
FDK_HOST_DEVICE inline double exp_below_0(double x) {
  // Adding kShift rounds to an integer n, and leaves n + 1023 in the low bits.
  constexpr double kShift = 0x1.8p52 + 1023;
  const double shifted = x * (1 / kLog2) + kShift, n = shifted - kShift;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;  // x - n log 2, |r| <= log(2) / 2
  // e^r = 1 + r + r^2 p(r), minimax
  double p = 2.7476737354611244e-7;
  p = p * r + 2.7635004486599461e-6;
  p = p * r + 2.4801931954069543e-5;
  p = p * r + 0.00019841185206917523;
  p = p * r + 0.0013888888515944176;
  p = p * r + 0.0083333333708891715;
  p = p * r + 0.041666666668137686;
  p = p * r + 0.16666666666611519;
  p = p * r + 0.49999999999998323;
  p = (p * r + 1.0) * r + 1.0;
  const double power = std::bit_cast<double>(std::bit_cast<uint64_t>(shifted) << 52);  // 2^n
  return x < -708.0 ? 0.0 : p * power;                                                 // NaN stays NaN
}

struct Softplus {
  double value, slope;
};

FDK_HOST_DEVICE inline Softplus softplus_with_slope(double x) {
  const double u = exp_below_0(-::fabs(x));
  // log(1 + u) = 2 atanh(s) with s = u / (u + 2) <= 1/3. The sigmoid is 1 or u over u + 1. One division serves both.
  const double inverse = 1.0 / ((u + 1.0) * (u + 2.0));
  const double s = u * (inverse * (u + 1.0)), square = s * s;
  // atanh(s) = s + s^3 p(s^2), minimax
  double p = 0.088748554472870778;
  p = p * square + 0.049489532004885741;
  p = p * square + 0.067936616838351837;
  p = p * square + 0.076820920662106532;
  p = p * square + 0.090914106021558144;
  p = p * square + 0.11111096319311529;
  p = p * square + 0.14285714531742615;
  p = p * square + 0.19999999997997497;
  p = p * square + 0.3333333333333894;
  return {(x > 0.0 ? x : 0.0) + 2.0 * (s + s * square * p), (x < 0.0 ? u : 1.0) * (inverse * (u + 2.0))};
}

}  // namespace

}  // namespace fdkernels
