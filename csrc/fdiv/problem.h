// The op fdiv (fused_fdiv_loss) without torch: a call as raw pointers, and the arithmetic around each sample.
//
//   s_b  = 1 / (max(mean_i |x_bi - tau_bi|, floor) + eps)      dmd_scale; else 1
//   g_bi = h_b s_b m_bi c_bi (f_bi - tau_bi)                   f, tau raw predictions with x0 = a x_t + c prediction
//   loss = 1/2 sum g^2 / N,   gradient = g / N
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "core/predictions.h"
#include "core/tables.h"

namespace fdkernels {

struct Problem {
  int64_t batch, elements;
  Samples student, teacher, fake, teacher_uncond, fake_uncond, noisy;
  double guidance_scale, fake_guidance_scale;
  PredictionKind prediction;
  Table alpha, sigma;
  double sigma_data;
  Table multiplier, mask;
  const double* weight;  // CPU: h, one per sample; not finite if logit, t or weight is not
  bool dmd_scale;
  double eps, floor;
  bool kept_only;  // masked elements take no part in the means of |x - tau| and |c (f - tau)|
  bool zero_nonfinite;
  Reduction reduction;
  bool with_stats;
  void* gradient;  // contiguous, in student's dtype; null: loss only
  bool aligned;    // CUDA: every vector of every N-sized tensor is aligned to its size

  FDK_HOST_DEVICE bool is_raw() const {
    return prediction != PredictionKind::sample;
  }

  std::array<const Samples*, 6> inputs() const {
    return {&student, &teacher, &fake, &teacher_uncond, &fake_uncond, &noisy};
  }

  // Whether the arithmetic is in double, since an N-sized input is.
  bool is_wide() const {
    for (const Samples* input : inputs()) {
      if (input->data != nullptr && input->dtype == DType::f64) return true;
    }
    return false;
  }
};

// Sums over elements. Masked ones count in neither energy nor nonfinite.
struct Sums {
  double distance = 0;  // |x - tau|
  double energy = 0;    // (m c (f - tau))^2, with m the multiplier where it varies within a sample
  double gap = 0;       // |c (f - tau)|
  bool nonfinite = false;
  double kept = 0;  // unmasked elements of a call that has a mask
};

// w_b, the factor of all directions of a sample. A sample that is not finite is marked in `sums`, and gets 0 or NaN.
FDK_HOST_DEVICE inline double sample_weight(const Problem& p, int64_t b, double h, Sums& sums) {
  const double multiplier =
      p.multiplier.data != nullptr && p.multiplier.entries == 1 ? table_entry(p.multiplier, b, 0) : 1.0;
  const double counted = p.kept_only ? sums.kept : static_cast<double>(p.elements);
  const double mean = sums.distance / ::fmax(1.0, counted);
  // A NaN mean stays NaN. If no element is kept, there is no mean, and nothing to divide.
  const double divisor = p.dmd_scale && counted > 0 ? (mean < p.floor ? p.floor : mean) + p.eps : 1.0;
  const double w = h / divisor * multiplier;
  sums.nonfinite = sums.nonfinite || !(w - w == 0) || !(multiplier - multiplier == 0);
  if (!sums.nonfinite) return w;
  return p.zero_nonfinite ? 0.0 : NAN;
}

}  // namespace fdkernels
