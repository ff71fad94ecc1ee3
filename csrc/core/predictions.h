// What the networks predict: x0 = a x_t + c prediction, with a and c in double from the noise levels. The same table
// stands in fdkernels/prediction.py and fdkernels/_triton/predictions.py; tests compare them.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/names.h"

namespace fdkernels {

// X(name, a, c) of alpha, sigma and data, EDM's sigma_data.
#define FDK_PREDICTIONS(X)                                                                             \
  X(sample, 0.0, 1.0)                                                                                  \
  X(epsilon, 1.0 / alpha, -sigma / alpha)                                                              \
  X(v_prediction, alpha, -sigma)                                                                       \
  X(flow_prediction, 1.0, -sigma)                                                                      \
  X(edm, data* data / sum_of_squares(sigma, data), sigma * data / ::sqrt(sum_of_squares(sigma, data))) \
  X(affine, alpha, sigma)

// What a network of each kind is trained to predict: p x0 + q noise, X(name, p, q). An affine target's p and q are
// alpha and sigma. EDM's x_t is x0 + sigma noise.
#define FDK_TARGETS(X)                                                                                      \
  X(sample, 1.0, 0.0)                                                                                       \
  X(epsilon, 0.0, 1.0)                                                                                      \
  X(v_prediction, -sigma, alpha)                                                                            \
  X(flow_prediction, -1.0, 1.0)                                                                             \
  X(edm, sigma / (data * ::sqrt(sum_of_squares(sigma, data))), -data / ::sqrt(sum_of_squares(sigma, data))) \
  X(affine, alpha, sigma)

enum class PredictionKind : int8_t { FDK_PREDICTIONS(FDK_ENUMERATOR) };
constexpr const char* kPredictionNames[] = {FDK_PREDICTIONS(FDK_NAME)};

// Keep functions in the unnamed namespace: see core/numbers.h.
namespace {

// An explicit fused multiply-add, so that no compiler decides whether to make it one.
FDK_HOST_DEVICE inline double sum_of_squares(double sigma, double data) {
  return ::fma(sigma, sigma, data * data);
}

struct Map {
  double a, c;
};

FDK_HOST_DEVICE inline Map coefficients_of(PredictionKind kind, double alpha, double sigma, double data) {
  switch (kind) {
#define FDK_CASE(name, a, c) \
  case PredictionKind::name: \
    return {a, c};
    FDK_PREDICTIONS(FDK_CASE)
  }
  return {NAN, NAN};
}

FDK_HOST_DEVICE inline Map target_of(PredictionKind kind, double alpha, double sigma, double data) {
  switch (kind) { FDK_TARGETS(FDK_CASE) }
  return {NAN, NAN};
}
#undef FDK_CASE

}  // namespace

}  // namespace fdkernels
