// Weighing: steps 1 to 5 (fdiv/weight.h) by some threads of a block, from a batch's logits to its weights h, in double.
// Every block of a forward weighs a small batch itself, since that is cheaper than a launch.
#pragma once

#include "core/cuda/block.cuh"
#include "fdiv/cuda/call.h"

namespace fdkernels::cuda {

// Where a block keeps h, the clamped ratios, each sample's bin, and the bins' means after this batch's update.
struct Weights {
  double *h, *ratios, *means;
  int* bins;
};

// Sums and extremes of a batch, for its statistics.
struct Weighed {
  WeightSums sums;
  Extremes extremes;
};

// Up to this many heads or samples, one thread adds up a mean or a bin; beyond, a warp does.
constexpr int64_t kHeadsAThread = 8;
constexpr int64_t kSamplesAThread = kWarp;

// The sum of entries first, first + step, ... below last, two loads at a time.
__device__ inline double sum_reals(const Reals& reals, int64_t first, int64_t last, int64_t step) {
  constexpr int kTogether = 2;
  double sum = 0;
#pragma unroll 1
  for (; first < last; first += kTogether * step) {
    uint64_t bits[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) bits[j] = first + j * step < last ? load_real(reals, first + j * step) : 0;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j * step < last) sum += to_double(bits[j], reals.type);
    }
  }
  return sum;
}

// Step 1: a sample's mean over heads. A thread adds heads first, first + step, ...; its warp adds the sums if step > 1.
__device__ inline double mean_of_heads(const Reals& logits, int64_t heads, int64_t b, int first, int step) {
  double sum = sum_reals(logits, b * heads + first, (b + 1) * heads, step);
  if (step > 1) sum = add_lanes(sum);
  return sum / static_cast<double>(heads);
}

// Writes each sample's mean over heads into h, and its t into ratios. With many heads, a warp takes a sample.
__device__ inline void combine_heads(const Group& group, const Weighting& w, int64_t batch, const Weights& to) {
  group.each(batch, w.heads > kHeadsAThread, [&](int64_t b, int first, int step) {
    const uint64_t t = w.t.data == nullptr ? 0 : load_real(w.t, b);
    const double mean = mean_of_heads(w.logits, w.heads, b, first, step);
    if (first != 0) return;
    to.h[b] = mean;
    to.ratios[b] = w.t.data == nullptr ? 0.0 : to_double(t, w.t.type);
  });
}

// Step 3: the bins' means after this batch.
__device__ inline void update_means(const Group& group, const RatioState& state, int64_t batch, const Weights& to) {
  const bool by_warp = batch > kSamplesAThread;
  group.each(state.bins, by_warp, [&](int64_t i, int first, int step) {
    double ratios = 0, count = 0;
#pragma unroll 4
    for (int64_t b = first; b < batch; b += step) {
      const bool member = to.bins[b] == i;
      ratios += member ? to.ratios[b] : 0.0;
      count += member;
    }
    if (by_warp) ratios = add_lanes(ratios), count = add_lanes(count);
    if (first == 0) to.means[i] = updated_mean(static_cast<float>(to.means[i]), ratios, count, state.decay);
  });
  group.sync();
}

// Writes to.h, `figures` and, with a normalizer, to.means. The group may read them on return, the block's other threads
// after a barrier with the group. Each thread calls has_read() when it no longer reads the normalizer's state.
template <class HasRead>
__device__ inline void weigh_batch(const Group& group, const Weighting& w, int64_t batch, const Weights& to,
                                   Weighed& figures, const HasRead& has_read) {
  WeightSums sums{};
  Extremes found = no_extremes();
  const bool normalized = w.state.mean != nullptr;
  // Loaded here, so that it is in flight together with the logits.
  const float mean = normalized && group.thread() < w.state.bins ? w.state.mean[group.thread()] : 0.0f;
  combine_heads(group, w, batch, to);
  if (normalized) {
    group.each(w.state.bins, [&](int64_t i) { to.means[i] = i < group.threads ? mean : w.state.mean[i]; });
  }
  has_read();
  group.sync();
  group.each(batch, [&](int64_t b) {
    const double t = to.ratios[b];
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
    const bool counts = to.h[b] < INFINITY;
    to.ratios[b] = counts ? exponential(to.h[b] - found.highest) : NAN;
    if (counts) add_relative(sums, to.ratios[b]);
  });
  double totals[kMaxSums] = {sums.count, sums.clipped, sums.outside, sums.ratios,
                             sums.total, sums.squares, sums.samples};
  group.reduce<Add>(totals);
  sums = {totals[0], totals[1], totals[2], totals[3], totals[4], totals[5], totals[6]};

  if (group.thread() == 0) figures = {sums, found};
  const double over_mean = sums.count / sums.total;
  group.each(batch, [&](int64_t b) {
    to.h[b] = w.options.normalize ? to.ratios[b] * over_mean : exponential(to.h[b]);  // NaN stays NaN
  });
  group.sync();
}

// h of a sample in a call without logits: the given weight, or 1; NaN if t is not finite.
__device__ inline double given_weight(const Weighting& w, int64_t b) {
  const uint64_t given = w.given.data == nullptr ? 0 : load_real(w.given, b);
  const uint64_t t = w.t.data == nullptr ? 0 : load_real(w.t, b);
  const double h = w.given.data == nullptr ? 1.0 : to_double(given, w.given.type);
  return w.t.data == nullptr || is_finite(to_double(t, w.t.type)) ? h : NAN;
}

__device__ inline void store_means(const Group& group, const RatioState& state, const double* means) {
  group.each(state.bins, [&](int64_t i) { state.mean[i] = static_cast<float>(means[i]); });
}

}  // namespace fdkernels::cuda
