// The op noising without torch: a call as raw pointers, and the math of one element, for every device.
//
//   result      y
//   noisy       alpha x + sigma noise       x is x0, y is x_t
//   flow        (1 - sigma) x + sigma noise the same; alpha is not read
//   x0          c x + a noise               x is a raw prediction and noise x_t: y is x0
//   prediction  x / c - a / c noise         x is x0 and noise x_t: y is the raw prediction
//
// with x0 = a x_t + c prediction (core/predictions.h). noise is given, drawn from a seed, or absent, which reads as 0.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include "core/affine.h"
#include "core/random.h"
#include "core/tables.h"

namespace fdkernels {

#define FDK_NOISING_RESULTS(X) X(noisy) X(flow) X(x0) X(prediction)
enum class NoisingResult : int8_t { FDK_NOISING_RESULTS(FDK_ENUMERATOR) };
constexpr const char* kNoisingResultNames[] = {FDK_NOISING_RESULTS(FDK_NAME)};

struct Noising {
  int64_t batch, elements;
  Samples x, noise;
  const int64_t* seed;  // null: nothing is drawn
  NoisingResult result;
  PredictionKind prediction;
  Table alpha, sigma;
  double sigma_data;
  void* y;      // contiguous, in x's dtype
  void* drawn;  // the same, for the noise; null: not asked for

  bool is_wide() const {
    return x.dtype == DType::f64 || (noise.data != nullptr && noise.dtype == DType::f64);
  }
};

namespace {

// y = a x + c noise.
FDK_HOST_DEVICE inline Map terms_of(const Noising& p, double alpha, double sigma) {
  if (p.result == NoisingResult::noisy) return {alpha, sigma};
  if (p.result == NoisingResult::flow) return {1 - sigma, sigma};
  const Map map = coefficients_of(p.prediction, alpha, sigma, p.sigma_data);
  if (p.result == NoisingResult::x0) return {map.c, map.a};
  return {1 / map.c, -map.a / map.c};
}

FDK_HOST_DEVICE inline Map terms_at(const Noising& p, int64_t b, int64_t i) {
  return terms_of(p, table_value(p.alpha, b, i), table_value(p.sigma, b, i));
}

// The number of elements from i on that have the same terms, at most `most`.
FDK_HOST_DEVICE inline int64_t same_terms(const Noising& p, int64_t i, int64_t most) {
  return run_at(p.sigma, i, run_at(p.alpha, i, most));
}

// A number as it is stored.
template <class Stored, class T>
FDK_HOST_DEVICE inline T as_stored(T v, DType dtype) {
  with_type<Stored>(dtype, [&](auto type) {
    decltype(type) stored;
    put(static_cast<decltype(number(type))>(v), stored);
    v = static_cast<T>(number(stored));
  });
  return v;
}

}  // namespace

}  // namespace fdkernels
