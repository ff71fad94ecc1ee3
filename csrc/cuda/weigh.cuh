// Steps 1 to 5 by one block: from the logits of a batch to its weights h, in double. Every block of a forward does this
// for itself while the batch is small, since that is cheaper than a launch.
#pragma once

#include "block.cuh"
#include "fdkernels/weight.h"

namespace fdkernels::cuda {

// Where a block keeps h, each sample's bin, and the bins' means after this batch's update.
struct Weights {
  double* h = nullptr;
  double* means = nullptr;
  int* bins = nullptr;
};

// A batch's figures.
struct Weighed {
  WeightSums sums;
  Extremes extremes;
};

constexpr int64_t kHeadsAThread = 8;

// Step 1: the mean over heads, into h. Many heads are shared by a warp.
__device__ inline void combine_heads(const Weighting& w, int64_t batch, double* h) {
  const double heads = static_cast<double>(w.heads);
  if (w.heads <= kHeadsAThread) {
    for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
      double sum = 0;
      for (int64_t k = 0; k < w.heads; ++k) sum += real_at(w.logits, b * w.heads + k);
      h[b] = sum / heads;
    }
  } else {
    for (int64_t b = warp(); b < batch; b += blockDim.x / kWarp) {
      double sum[1] = {0};
      for (int64_t k = lane(); k < w.heads; k += kWarp) sum[0] += real_at(w.logits, b * w.heads + k);
      reduce_warp<Add>(sum);
      if (lane() == 0) h[b] = sum[0] / heads;
    }
  }
  __syncthreads();
}

// Step 3: the bins' means, a warp each, from clamped log ratios.
__device__ inline void average_bins(const RatioState& state, int64_t batch, const double* L, const Weights& to) {
  for (int64_t i = warp(); i < state.bins; i += blockDim.x / kWarp) {
    float mean = state.mean[i];
    if (state.update) {
      double sums[2] = {0, 0};
      for (int64_t b = lane(); b < batch; b += kWarp) {
        if (to.bins[b] == i) {
          sums[0] += ::exp(L[b]);
          sums[1] += 1;
        }
      }
      reduce_warp<Add>(sums);
      mean = updated_mean(mean, sums[0], sums[1], state.decay);
    }
    if (lane() == 0) to.means[i] = mean;
  }
  __syncthreads();
}

// Writes to.h, with a normalizer to.means, and the figures; every thread may read them on return.
__device__ inline void weigh_batch(const Weighting& w, int64_t batch, const Weights& to, Weighed& figures,
                                   Scratch& scratch) {
  WeightSums sums;
  Extremes found;
  const bool normalized = w.state.mean != nullptr;
  combine_heads(w, batch, to.h);
  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    const double t = w.t.data == nullptr ? 0.0 : real_at(w.t, b);
    const LogRatio ratio = log_ratio(to.h[b], t, w.state, w.options);
    add(sums, ratio);
    to.h[b] = ratio.finite ? ratio.L : NAN;
    if (normalized) to.bins[b] = ratio.finite ? static_cast<int>(ratio_bin(w.state, t)) : -1;
  }
  __syncthreads();
  if (normalized) average_bins(w.state, batch, to.h, to);

  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    double L = to.h[b];
    if (!is_finite(L)) continue;
    if (normalized) L -= ::log(to.means[to.bins[b]]);
    const double log_h = log_weight(w.options.divergence, L, w.options.alpha);
    add(found, log_h);
    to.h[b] = log_h;
  }
  double extremes[2] = {-found.lowest, found.highest};
  reduce_block<Max>(extremes, scratch);
  found = {-extremes[0], extremes[1]};

  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    if (is_finite(to.h[b])) add_relative(sums, ::exp(to.h[b] - found.highest));
  }
  double totals[6] = {sums.count, sums.clipped, sums.outside, sums.ratios, sums.total, sums.squares};
  reduce_block<Add>(totals, scratch);
  sums = {totals[0], totals[1], totals[2], totals[3], totals[4], totals[5]};

  if (threadIdx.x == 0) figures = {sums, found};
  const double log_mean = log_mean_weight(sums, found, w.options.normalize);
  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) to.h[b] = ::exp(to.h[b] - log_mean);  // NaN stays NaN
  __syncthreads();
}

// h of a sample whose weight was given, or 1; NaN where t is not finite.
__device__ inline double given_weight(const Weighting& w, int64_t b) {
  const double h = w.given.data == nullptr ? 1.0 : real_at(w.given, b);
  return w.t.data == nullptr || is_finite(real_at(w.t, b)) ? h : NAN;
}

__device__ inline void store_given_weight_stats(const Weighting& w, int64_t batch, double* stats, Scratch& scratch) {
  WeightSums sums;
  Extremes found;
  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    const double h = given_weight(w, b);
    if (!is_finite(h)) continue;
    sums.count += 1;
    add_relative(sums, h);
    add(found, h);
  }
  double extremes[2] = {-found.lowest, found.highest};
  reduce_block<Max>(extremes, scratch);
  double totals[3] = {sums.count, sums.total, sums.squares};
  reduce_block<Add>(totals, scratch);
  sums.count = totals[0], sums.total = totals[1], sums.squares = totals[2];
  if (threadIdx.x == 0) given_weight_stats(sums, Extremes{-extremes[0], extremes[1]}, batch, stats);
}

__device__ inline void store_means(const RatioState& state, const double* means) {
  for (int64_t i = threadIdx.x; i < state.bins; i += blockDim.x) state.mean[i] = static_cast<float>(means[i]);
}

}  // namespace fdkernels::cuda
