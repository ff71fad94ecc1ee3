// What the flagship op computes, free of torch: the problem as raw pointers, the weight h of steps 1 to 5, and the
// arithmetic around each sample. The kernels under cpu/ add the loops over a sample's elements.
//
//   s_b  = 1 / (mean_i |x_bi - tau_bi| + eps)      dmd_scale, or a table, or 1
//   g_bi = h_b s_b c_bi (f_bi - tau_bi)            f, tau raw predictions with x0 = a x_t + c prediction
//   loss = 1/2 sum g^2 / N,   gradient = g / N
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "divergences.h"

namespace fdkernels {

enum class DType : int8_t { f32, f64, bf16, f16 };

FDK_HOST_DEVICE constexpr int size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// An N-sized input: each sample is one dense run of n elements. Absent where data is null.
struct Images {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch_stride = 0;
};

// A small operand: element i of sample b reads entry (i / inner) % entries of row b. A stride of 0 shares one row.
struct Table {
  const void* data = nullptr;
  DType dtype = DType::f32;  // of masks: unused, one byte an entry
  int64_t batch_stride = 0;
  int64_t entries = 1;
  int64_t inner = 1;
};

enum class Reduction : int8_t { mean, sum, none };

struct Problem {
  int64_t batch, elements;
  Images student, teacher, fake, teacher_uncond, fake_uncond, noisy;
  double guidance_scale, fake_guidance_scale;
  Table a, c, scale, mask;
  const double* weight;  // h, one per sample; NaN where logit, t or weight is not finite
  bool dmd_scale;
  double eps;
  bool zero_nonfinite;
  Reduction reduction;
  bool with_stats;
  void* gradient;  // contiguous, in student's dtype; null: loss only
  bool wide;       // arithmetic in double, since an N-sized input is
  bool aligned;    // every sample of every N-sized tensor starts at a multiple of 16 bytes; the CPU does not ask
};

// Sums over a run of elements. Masked ones count in neither energy nor nonfinite.
struct Sums {
  double distance = 0;  // |x - tau|
  double energy = 0;    // (scale c (f - tau))^2
  double gap = 0;       // |c (f - tau)|
  bool nonfinite = false;
  double kept = 0;  // unmasked elements, where a schedule counts them as it goes
};

struct RatioState {
  float* mean;  // null: no normalizer
  int64_t bins;
  const double* edges;  // bins - 1 interior edges, right-open; null: uniform bins
  double t_min, t_max, decay;
  bool update;
};

struct WeightOptions {
  Divergence divergence;
  double alpha;
  double log_ratio_min, log_ratio_max;
  bool normalize;
};

// weight min, mean, max, effective sample size, ratio mean, clip fraction, out-of-range fraction
constexpr int kWeightStats = 7;
// then gradient norm, relative gap, non-finite samples, and h of every sample
constexpr int kStats = kWeightStats + 3;

// The bin of a finite noise level.
FDK_HOST_DEVICE inline int64_t ratio_bin(const RatioState& state, double t) {
  if (state.edges != nullptr) {
    int64_t low = 0, high = state.bins - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (state.edges[middle] <= t) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  const double position = ::floor((t - state.t_min) / ((state.t_max - state.t_min) / static_cast<double>(state.bins)));
  if (!(position > 0)) return 0;
  return position < static_cast<double>(state.bins - 1) ? static_cast<int64_t>(position) : state.bins - 1;
}

FDK_HOST_DEVICE inline double table_entry(const Table& table, int64_t b, int64_t entry) {
  const int64_t at = b * table.batch_stride + entry;
  return table.dtype == DType::f64 ? static_cast<const double*>(table.data)[at]
                                   : static_cast<const float*>(table.data)[at];
}

// w_b, everything that multiplies a sample's per-element direction: 0 or NaN for a non-finite sample, which is marked.
FDK_HOST_DEVICE inline double sample_weight(const Problem& p, int64_t b, double h, Sums& sums) {
  const double scale = p.scale.data != nullptr && p.scale.entries == 1 ? table_entry(p.scale, b, 0) : 1.0;
  const double divisor = p.dmd_scale ? sums.distance / static_cast<double>(p.elements) + p.eps : 1.0;
  const double w = h / divisor * scale;
  sums.nonfinite = sums.nonfinite || !(w - w == 0) || !(scale - scale == 0);
  if (!sums.nonfinite) return w;
  return p.zero_nonfinite ? 0.0 : NAN;
}

// float16 stores (g / N) 2^k with k = floor(log2 N), since g / N underflows it: N, at least 1, without its fraction.
FDK_HOST_DEVICE inline double float16_power(double divisor) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(divisor) & 0xfff0000000000000u);
}

// Steps 1 to 5 on combined logits L (modified), t (null: none); see fdkernels/fdiv/weight.py, the specification.
void fdiv_weight(int64_t batch, double* L, const double* t, const RatioState& state, const WeightOptions& options,
                 double* h, double* stats);

// Statistics of weights that the caller gave; NaN ones count as non-finite samples.
void given_weight_stats(int64_t batch, const double* h, double* stats);

}  // namespace fdkernels
