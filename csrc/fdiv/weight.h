// The weight h of one sample in double and in the log domain, shared by the CPU and the CUDA kernels. Steps 1 to 5 are
// those of fdkernels/fdiv/weight.py, the specification.
//
// Three passes over a batch compute log ratios (with a normalizer, also the sums of its bins), then log weights and
// their extremes, then weights relative to the largest and their sums. So neither a mean nor a square overflows.
#pragma once

#include "core/numbers.h"
#include "fdiv/divergences.h"

namespace fdkernels {

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
// then gradient norm, relative gap, non-finite samples, generator loss; h of every sample follows
constexpr int kStats = kWeightStats + 4;

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

// One sample after steps 1 and 2.
struct LogRatio {
  double L = 0, r = 0;  // the clamped log ratio, and e^L; both 0 if the sample is not finite
  bool finite = false, clipped = false, outside = false;
};

// Sums over a batch's finite samples; each pass adds some of them.
struct WeightSums {
  double count;                     // samples with a weight: log h is below infinity
  double clipped, outside, ratios;  // over `samples`
  double total, squares;            // of h / highest h
  double samples;                   // samples with finite logits and t
};

struct Extremes {
  double lowest, highest;  // of log h
};

FDK_HOST_DEVICE constexpr Extremes no_extremes() {
  return {INFINITY, -INFINITY};
}

// combined: mean of the heads' logits. t: 0 if the call has none.
FDK_HOST_DEVICE inline LogRatio log_ratio(double combined, double t, const RatioState& state,
                                          const WeightOptions& options) {
  LogRatio ratio;
  ratio.finite = is_finite(combined) && is_finite(t);
  if (!ratio.finite) return ratio;
  ratio.L = ::fmin(::fmax(combined, options.log_ratio_min), options.log_ratio_max);
  ratio.r = exponential(ratio.L);
  ratio.clipped = ratio.L != combined;
  ratio.outside = state.mean != nullptr && (t < state.t_min || t > state.t_max);
  return ratio;
}

FDK_HOST_DEVICE inline void add(WeightSums& sums, const LogRatio& ratio) {
  if (!ratio.finite) return;
  sums.samples += 1;
  sums.clipped += ratio.clipped;
  sums.outside += ratio.outside;
  sums.ratios += ratio.r;
}

// Step 3: a bin's mean after this batch's update, rounded to float like the state.
FDK_HOST_DEVICE inline float updated_mean(float old, double ratio_sum, double count, double decay) {
  if (!(count > 0)) return old;
  return static_cast<float>(decay * static_cast<double>(old) + (1 - decay) * (ratio_sum / count));
}

// Step 4. Returns false, and the sample is dropped, if its log weight is not below infinity, as with a bin's mean of 0.
FDK_HOST_DEVICE inline bool add(WeightSums& sums, Extremes& extremes, double log_h) {
  if (!(log_h < INFINITY)) return false;
  sums.count += 1;
  extremes.lowest = ::fmin(extremes.lowest, log_h);
  extremes.highest = ::fmax(extremes.highest, log_h);
  return true;
}

FDK_HOST_DEVICE inline void add_relative(WeightSums& sums, double relative) {
  sums.total += relative;
  sums.squares += relative * relative;
}

// What step 5 subtracts from log h.
FDK_HOST_DEVICE inline double log_mean_weight(const WeightSums& sums, const Extremes& extremes, bool normalize) {
  return normalize ? extremes.highest + logarithm(sums.total / sums.count) : 0.0;
}

// Sets the first kWeightStats statistics. given: the weights are the caller's; extremes and sums are then of h itself.
FDK_HOST_DEVICE inline void weight_stats(const WeightSums& sums, const Extremes& extremes, int64_t batch,
                                         bool normalized, bool given, double* stats) {
  const bool any = sums.count > 0;
  const double lowest = given ? extremes.lowest : exponential(extremes.lowest);
  const double highest = given ? extremes.highest : exponential(extremes.highest);
  stats[0] = any ? lowest : NAN;
  stats[1] = any ? (given ? 1 : highest) * (sums.total / sums.count) : NAN;
  stats[2] = any ? highest : NAN;
  stats[3] = any ? sums.total * sums.total / (static_cast<double>(batch) * sums.squares) : NAN;
  stats[4] = given ? NAN : sums.ratios / sums.samples;
  stats[5] = given ? NAN : sums.clipped / sums.samples;
  stats[6] = normalized ? sums.outside / sums.samples : NAN;
}

// Steps 2 to 5 on the CPU, from combined logits L (modified) and t (null: none).
void fdiv_weight(int64_t batch, double* L, const double* t, const RatioState& state, const WeightOptions& options,
                 double* h, double* stats);

// Statistics of the caller's weights, without those that are not finite.
void given_weight_stats(int64_t batch, const double* h, double* stats);

}  // namespace fdkernels
