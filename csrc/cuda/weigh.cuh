// Steps 1 to 5 by one block: from the logits of a batch to its weights h, in double. Every block of a forward does this
// for itself while the batch is small, since that is cheaper than a launch.
#pragma once

#include "block.cuh"
#include "fdkernels/weight.h"

namespace fdkernels::cuda {

// Where a block keeps h, the clamped ratios, each sample's bin, and the bins' means after this batch's update.
struct Weights {
  double *h, *ratios, *means;
  int* bins;
};

// A batch's figures.
struct Weighed {
  WeightSums sums;
  Extremes extremes;
};

// Who weighs: a whole block, or its first warp, while the others load elements. Not a template: both would be compiled.
struct Group {
  bool whole;
  Scratch& scratch;

  __device__ static int thread() {
    return static_cast<int>(threadIdx.x);
  }
  __device__ int threads() const {
    return whole ? static_cast<int>(blockDim.x) : kWarp;
  }
  __device__ void sync() const {
    if (whole) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
  template <class Op, int N>
  __device__ void reduce(double (&values)[N]) const {
    reduce_warp<Op>(values);
    if (whole) share_in_block<Op>(values, scratch);
  }
  // A thread an index, and once in the code: most threads take one or none.
  template <class Use>
  __device__ void each(int64_t count, const Use& use) const {
#pragma unroll 1
    for (int64_t i = thread(); i < count; i += threads()) use(i);
  }
};

constexpr int64_t kHeadsAThread = 8;
constexpr int64_t kSamplesAWarp = kWarp;  // that one warp weighs by itself

// Step 1: the mean over heads, into h. Many heads are shared by a warp.
__device__ inline void combine_heads(const Group& group, const Weighting& w, int64_t batch, double* h) {
  const double heads = static_cast<double>(w.heads);
  if (w.heads <= kHeadsAThread) {
    group.each(batch, [&](int64_t b) {
      double sum = 0;
#pragma unroll 1
      for (int64_t k = 0; k < w.heads; ++k) sum += real_at(w.logits, b * w.heads + k);
      h[b] = sum / heads;  // read by this thread alone
    });
    return;
  }
#pragma unroll 1
  for (int64_t b = group.thread() / kWarp; b < batch; b += group.threads() / kWarp) {
    double sum[1] = {0};
#pragma unroll 1
    for (int64_t k = lane(); k < w.heads; k += kWarp) sum[0] += real_at(w.logits, b * w.heads + k);
    reduce_warp<Add>(sum);
    if (lane() == 0) h[b] = sum[0] / heads;
  }
  group.sync();
}

// Step 3: the bins' means after this batch. A thread adds up a bin of a small batch, else a warp.
__device__ inline void update_means(const Group& group, const RatioState& state, int64_t batch, const Weights& to) {
  const int64_t step = batch <= kSamplesAWarp ? 1 : kWarp, first = step == 1 ? 0 : lane();
#pragma unroll 1
  for (int64_t i = group.thread() / step; i < state.bins; i += group.threads() / step) {
    double sums[2] = {0, 0};
#pragma unroll 4
    for (int64_t b = first; b < batch; b += step) {
      const bool member = to.bins[b] == i;
      sums[0] += member ? to.ratios[b] : 0.0;
      sums[1] += member;
    }
    if (step > 1) reduce_warp<Add>(sums);
    if (first == 0) to.means[i] = updated_mean(static_cast<float>(to.means[i]), sums[0], sums[1], state.decay);
  }
  group.sync();
}

// Writes to.h, with a normalizer to.means, and the figures. The group may read them on return, others of its block
// after their next barrier.
__device__ inline void weigh_batch(const Group& group, const Weighting& w, int64_t batch, const Weights& to,
                                   Weighed& figures) {
  WeightSums sums;
  Extremes found;
  const bool normalized = w.state.mean != nullptr;
  if (normalized) group.each(w.state.bins, [&](int64_t i) { to.means[i] = w.state.mean[i]; });
  combine_heads(group, w, batch, to.h);
  group.each(batch, [&](int64_t b) {
    const double t = w.t.data == nullptr ? 0.0 : real_at(w.t, b);
    const LogRatio ratio = log_ratio(to.h[b], t, w.state, w.options);
    add(sums, ratio);
    to.h[b] = ratio.finite ? ratio.L : NAN;
    to.ratios[b] = ratio.r;
    if (normalized) to.bins[b] = ratio.finite ? static_cast<int>(ratio_bin(w.state, t)) : -1;
  });
  group.sync();
  if (normalized && w.state.update) update_means(group, w.state, batch, to);

  group.each(batch, [&](int64_t b) {
    double L = to.h[b];
    if (!is_finite(L)) return;
    if (normalized) L -= logarithm(to.means[to.bins[b]]);
    const double log_h = log_weight(w.options.divergence, L, w.options.alpha);
    to.h[b] = add(sums, found, log_h) ? log_h : NAN;
  });
  double extremes[2] = {-found.lowest, found.highest};
  group.reduce<Max>(extremes);
  found = {-extremes[0], extremes[1]};

  group.each(batch, [&](int64_t b) {
    if (to.h[b] < INFINITY) add_relative(sums, exponential(to.h[b] - found.highest));
  });
  double totals[7] = {sums.count, sums.clipped, sums.outside, sums.ratios, sums.total, sums.squares, sums.samples};
  group.reduce<Add>(totals);
  sums = {totals[0], totals[1], totals[2], totals[3], totals[4], totals[5], totals[6]};

  if (group.thread() == 0) figures = {sums, found};
  const double log_mean = log_mean_weight(sums, found, w.options.normalize);
  group.each(batch, [&](int64_t b) { to.h[b] = exponential(to.h[b] - log_mean); });  // NaN stays NaN
  group.sync();
}

// h of a sample whose weight was given, or 1; NaN where t is not finite.
__device__ inline double given_weight(const Weighting& w, int64_t b) {
  const double h = w.given.data == nullptr ? 1.0 : real_at(w.given, b);
  return w.t.data == nullptr || is_finite(real_at(w.t, b)) ? h : NAN;
}

__device__ inline void store_given_weight_stats(const Weighting& w, int64_t batch, double* stats, Scratch& scratch) {
  WeightSums sums;
  Extremes found;
#pragma unroll 1
  for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
    const double h = given_weight(w, b);
    stats[kStats + b] = h;
    if (!is_finite(h)) continue;
    add_relative(sums, h);
    add(sums, found, h);
  }
  double extremes[2] = {-found.lowest, found.highest};
  reduce_block<Max>(extremes, scratch);
  double totals[3] = {sums.count, sums.total, sums.squares};
  reduce_block<Add>(totals, scratch);
  sums.count = totals[0], sums.total = totals[1], sums.squares = totals[2];
  if (threadIdx.x == 0) given_weight_stats(sums, Extremes{-extremes[0], extremes[1]}, batch, stats);
}

__device__ inline void store_means(const RatioState& state, const double* means) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < state.bins; i += blockDim.x) state.mean[i] = static_cast<float>(means[i]);
}

}  // namespace fdkernels::cuda
