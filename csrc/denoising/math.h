// The op denoising (denoising_loss) without torch: a call as raw pointers, and the math of one element, for every
// device.
//
//   d_bi = pred_bi - (p x0_bi + q noise_bi)     p and q of the prediction's kind (FDK_TARGETS)
//   loss = sum w_bi d_bi^2 / N,   gradient = 2 w_bi d_bi / N
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <array>

#include "core/affine.h"
#include "core/tables.h"

namespace fdkernels {

struct Denoising {
  int64_t batch, elements;
  Samples pred, x0, noise;
  PredictionKind prediction;
  Table alpha, sigma;
  double sigma_data;
  Table weight;
  Reduction reduction;
  void* gradient;  // contiguous, in pred's dtype; null: loss only

  std::array<const Samples*, 3> inputs() const {
    return {&pred, &x0, &noise};
  }

  bool is_wide() const {
    for (const Samples* input : inputs()) {
      if (input->dtype == DType::f64) return true;
    }
    return false;
  }
};

namespace {

// What elements read from tables: p and q as a and c, and w.
struct DenoisingRun {
  Map target;
  double weight;
};

FDK_HOST_DEVICE inline DenoisingRun run_around(const Denoising& p, int64_t b, int64_t i) {
  const double alpha = table_value(p.alpha, b, i), sigma = table_value(p.sigma, b, i);
  return {target_of(p.prediction, alpha, sigma, p.sigma_data), table_value(p.weight, b, i)};
}

// The number of elements from i on that read the same entries of all tables, at most `most`.
FDK_HOST_DEVICE inline int64_t same_entries(const Denoising& p, int64_t i, int64_t most) {
  return run_at(p.weight, i, run_at(p.sigma, i, run_at(p.alpha, i, most)));
}

// N, and the power of two with which a float16 gradient is stored. given: the caller's N; 0: none.
struct Divisors {
  double loss, power;
};

FDK_HOST_DEVICE inline Divisors divisors_of(const Denoising& p, double given) {
  double n = 1;
  if (p.reduction == Reduction::none) n = static_cast<double>(p.elements);
  if (p.reduction == Reduction::mean) n = static_cast<double>(p.batch) * static_cast<double>(p.elements);
  if (given != 0) n = given < 1 ? 1 : given;  // NaN stays NaN
  return {n, p.pred.dtype == DType::f16 ? float16_power(n) : 1.0};
}

}  // namespace

}  // namespace fdkernels
