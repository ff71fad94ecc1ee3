// Weighing a large batch: steps 1 to 5 (fdiv/weight.h) by many blocks, in three launches.
//
//   fdiv_ratios_kernel      log ratios, and each block's sums by bin
//   fdiv_logarithms_kernel  the bins' means, then log h
//   fdiv_normalize_kernel   h, statistics, and the normalizer's state
//
// Each block stores its sums. The next launch adds them in an order that depends on the batch's size alone.
#pragma once

#include "fdiv/cuda/weigh.cuh"

namespace fdkernels::cuda {

// Memory by which a launch hands results to the next.
struct Parts {
  double* h;       // (B,): log r, then log h, then h
  int* bins;       // (B,): a sample's bin, or -1 if it is not finite
  double* sums;    // (kPartSums, blocks)
  double* by_bin;  // (2, bins, blocks): the sum of a bin's ratios, and their number
  double* means;   // (bins,): after this batch
};

// One thread per block, or per bin, reads their sums.
static_assert(kWeighManyBlocks <= kWeighManyThreads && kWeighedBins <= kWeighManyThreads);

// Calls use(b) for the block's samples: in every round, a thread takes one.
template <class Use>
__device__ inline void each_own(int64_t batch, const Use& use) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWeighManyThreads;
#pragma unroll 1
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWeighManyThreads + threadIdx.x; b < batch; b += step) use(b);
}

// Stores a block's sums in rows first, first + 1, ... of to.sums.
template <int N>
__device__ inline void store_part(const Parts& to, int first, const double (&values)[N], int count = N) {
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n < count) to.sums[(first + n) * gridDim.x + blockIdx.x] = values[n];
  }
}

__global__ void __launch_bounds__(kWeighManyThreads)
    fdiv_ratios_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to) {
  __shared__ Scratch scratch;
  __shared__ double ratios[kWeighManyThreads];
  __shared__ int bins[kWeighManyThreads];
  const Group block{0, kWeighManyThreads, 0, scratch};
  const bool normalized = w.state.mean != nullptr;
  const int thread = block.thread();
  const int64_t round = static_cast<int64_t>(gridDim.x) * kWeighManyThreads;
  WeightSums sums{};
#pragma unroll 1
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kWeighManyThreads; first < batch; first += round) {
    const int count = static_cast<int>(batch - first < kWeighManyThreads ? batch - first : kWeighManyThreads);
    block.each(count, w.heads > kHeadsAThread, [&](int64_t i, int part, int step) {
      const double mean = mean_of_heads(w.logits, w.heads, first + i, part, step);
      if (part == 0) ratios[i] = mean;
    });
    block.sync();
    if (thread < count) {
      const int64_t b = first + thread;
      const double t = w.t.data == nullptr ? 0.0 : real_at(w.t, b);
      const LogRatio ratio = log_ratio(ratios[thread], t, w.state, w.options);
      add(sums, ratio);
      to.h[b] = ratio.finite ? ratio.L : NAN;
      ratios[thread] = ratio.r;
      if (normalized) to.bins[b] = bins[thread] = ratio.finite ? static_cast<int>(ratio_bin(w.state, t)) : -1;
    }
    block.sync();
    if (normalized && thread < w.state.bins) {
      double sum = 0, members = 0;
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        if (bins[i] == thread) sum += ratios[i], members += 1;  // not a select: float64 is slow on some devices
      }
      double *ratio_sum = to.by_bin + thread * gridDim.x + blockIdx.x, *number = ratio_sum + w.state.bins * gridDim.x;
      const bool again = first >= round;
      *ratio_sum = sum + (again ? *ratio_sum : 0.0);
      *number = members + (again ? *number : 0.0);
    }
    block.sync();
  }
  double totals[4] = {sums.samples, sums.clipped, sums.outside, sums.ratios};
  block.reduce<Add>(totals);
  store_part(to, 0, totals);
}

__global__ void __launch_bounds__(kWeighManyThreads)
    fdiv_logarithms_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to) {
  __shared__ Scratch scratch;
  __shared__ double log_means[kWeighedBins];
  const Group block{0, kWeighManyThreads, 0, scratch};
  const bool normalized = w.state.mean != nullptr;
  const int thread = block.thread();
  if (normalized && thread < w.state.bins) {
    float mean = w.state.mean[thread];
    if (w.state.update) {
      const double* of_bin = to.by_bin + thread * gridDim.x;
      double sum = 0, members = 0;
#pragma unroll 4
      for (unsigned k = 0; k < gridDim.x; ++k) sum += of_bin[k], members += of_bin[w.state.bins * gridDim.x + k];
      mean = updated_mean(mean, sum, members, w.state.decay);
    }
    if (blockIdx.x == 0) to.means[thread] = mean;
    log_means[thread] = logarithm(mean);
  }
  block.sync();
  WeightSums sums{};
  Extremes found = no_extremes();
  each_own(batch, [&](int64_t b) {
    double L = to.h[b];
    if (!is_finite(L)) return;
    if (normalized) L -= log_means[to.bins[b]];
    const double log_h = log_weight(w.options.divergence, L, w.options.alpha);
    to.h[b] = add(sums, found, log_h) ? log_h : NAN;
  });
  double extremes[2] = {-found.lowest, found.highest};
  block.reduce<Max>(extremes);
  store_part(to, 4, extremes);
  const double highest = extremes[1];
  if (highest > -INFINITY) {  // else log h - highest is NaN, and so would be the batch's sums
    each_own(batch, [&](int64_t b) {
      if (to.h[b] < INFINITY) add_relative(sums, exponential(to.h[b] - highest));
    });
  }
  double totals[4] = {sums.count, sums.total, sums.squares};
  block.reduce<Add>(totals);
  store_part(to, 6, totals, 3);
}

// Writes h, from the sums of all blocks. Block 0 also writes statistics (null: none) and the normalizer's state.
__global__ void __launch_bounds__(kWeighManyThreads)
    fdiv_normalize_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to,
                          double* stats) {
  __shared__ Scratch scratch;
  const Group block{0, kWeighManyThreads, 0, scratch};
  double part[kPartSums] = {0, 0, 0, 0, -INFINITY, -INFINITY, 0, 0, 0};
#pragma unroll
  for (int n = 0; n < kPartSums; ++n) {
    if (threadIdx.x < gridDim.x) part[n] = to.sums[n * gridDim.x + threadIdx.x];
  }
  double extremes[2] = {part[4], part[5]};
  block.reduce<Max>(extremes);
  const Extremes found{-extremes[0], extremes[1]};
  const double relative = part[5] > -INFINITY ? exponential(part[5] - found.highest) : 0.0;
  double totals[kMaxSums] = {part[6], part[1], part[2], part[3], part[7] * relative, part[8] * relative * relative,
                             part[0]};
  block.reduce<Add>(totals);
  const WeightSums sums{totals[0], totals[1], totals[2], totals[3], totals[4], totals[5], totals[6]};
  const double over_mean = sums.count / sums.total;
  each_own(batch, [&](int64_t b) {
    const double log_h = to.h[b];
    to.h[b] = w.options.normalize ? exponential(log_h - found.highest) * over_mean : exponential(log_h);
  });  // NaN stays NaN
  if (blockIdx.x != 0) return;
  const bool normalized = w.state.mean != nullptr;
  if (stats != nullptr && threadIdx.x == 0) weight_stats(sums, found, batch, normalized, false, stats);
  if (normalized && w.state.update) store_means(block, w.state, to.means);
}

}  // namespace fdkernels::cuda
