// Sums of two products, a x + c y, where the products may be large and cancel: at high noise x0 = a x_t + c prediction
// is a hundredth of its terms.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cmath>

#include "core/numbers.h"
#include "core/predictions.h"

namespace fdkernels {

namespace {

// Whether std::fma is one instruction; if not, loops on the CPU compute such sums in double.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFusedMultiplyAdd = true;
#else
constexpr bool kFusedMultiplyAdd = false;
#endif

// The error of operands in double, or in float with a and c in double. a and c rounded to float would shift a whole
// sample the same way, which no mean averages out.
FDK_HOST_DEVICE inline double error_of(double x, double noisy, double tau, double a, double c) {
  return x - (a * noisy + c * tau);
}

// a and c for a run of elements. Each is a sum of two numbers of type T.
template <class T>
struct Coefficients {
  T a = 0, a_rest = 0, c = 1, c_rest = 0;
};

// The same error in T, to the last place: at high noise a x_t and c tau are large and cancel. The rounding error of c
// tau is kept, and a x_t is not rounded (Kahan's a b + c d: within two roundings of the result, and no contraction by a
// compiler can change it).
template <class T>
FDK_HOST_DEVICE inline T error_of(T x, T noisy, T tau, const Coefficients<T>& k) {
  const T product = k.c * tau, lost = std::fma(k.c, tau, -product);
  const T x0 = std::fma(k.a, noisy, product);
  return (x - x0) - (lost + std::fma(k.a_rest, noisy, k.c_rest * tau));
}

template <class T>
FDK_HOST_DEVICE inline Coefficients<T> split(const Map& map) {
  Coefficients<T> k{static_cast<T>(map.a), 0, static_cast<T>(map.c), 0};
  if constexpr (sizeof(T) < sizeof(double)) {
    k.a_rest = static_cast<T>(map.a - static_cast<double>(k.a));
    k.c_rest = static_cast<T>(map.c - static_cast<double>(k.c));
  }
  return k;
}

// Rounded products and sums that no compiler fuses on a GPU.
FDK_HOST_DEVICE inline float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

FDK_HOST_DEVICE inline float rounded_sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// x - (a y + c z) in float, also where x is so near to the sum that the sum's last place is not enough: the rounding
// errors of both products and of their sum are kept.
FDK_HOST_DEVICE inline float difference_of(float x, float y, float z, const Coefficients<float>& k) {
  const float first = rounded_product(k.a, y), second = rounded_product(k.c, z);
  const float lost = std::fma(k.a, y, -first) + std::fma(k.c, z, -second);
  const float sum = rounded_sum(first, second), most = rounded_sum(sum, -first);
  const float rest = rounded_sum(rounded_sum(first, -rounded_sum(sum, -most)), rounded_sum(second, -most));
  const float near = x - sum;
  return is_finite(near) ? near - (rest + (lost + std::fma(k.a_rest, y, k.c_rest * z))) : near;
}

FDK_HOST_DEVICE inline double difference_of(double x, double y, double z, const Coefficients<double>& k) {
  return x - (k.a * y + k.c * z);
}

// a x + c y in float, to the last place as well.
FDK_HOST_DEVICE inline float affine(float x, float y, const Coefficients<float>& k) {
  const float product = k.c * y, sum = std::fma(k.a, x, product);
  const float rest = std::fma(k.c, y, -product) + std::fma(k.a_rest, x, k.c_rest * y);
  return is_finite(sum) ? sum + rest : sum;
}

FDK_HOST_DEVICE inline double affine(double x, double y, const Coefficients<double>& k) {
  return k.a * x + k.c * y;
}

}  // namespace

}  // namespace fdkernels
