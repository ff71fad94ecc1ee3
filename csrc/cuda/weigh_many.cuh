// Steps 1 to 5 of a large batch by many blocks, in three launches: ratios, and their sums by bin; log h, after the
// bins' means; h. What a block adds up is stored and added again in the order of blocks, which the batch's size
// decides.
#pragma once

#include "weigh.cuh"

namespace fdkernels::cuda {

// What the launches leave for each other.
struct Parts {
  double* h;       // (B,): log r, then log h, then h
  int* bins;       // (B,): of samples that are finite, else -1
  double* sums;    // (kPartSums, blocks)
  double* by_bin;  // (2, bins, blocks): a bin's ratios, and how many
  double* means;   // (bins,): after this batch
};

static_assert(kMostWeighingBlocks <= kWeighingThreads && kWeighedBins <= kWeighingThreads);  // a thread each

// A block's samples: a thread takes one of every round.
template <class Use>
__device__ inline void each_own(int64_t batch, const Use& use) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWeighingThreads;
#pragma unroll 1
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWeighingThreads + threadIdx.x; b < batch; b += step) use(b);
}

template <int N>
__device__ inline void store_part(const Parts& to, int first, const double (&values)[N]) {
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int n = 0; n < N; ++n) to.sums[(first + n) * gridDim.x + blockIdx.x] = values[n];
}

__global__ void __launch_bounds__(kWeighingThreads)
    fdiv_ratios_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to) {
  __shared__ Scratch scratch;
  __shared__ double ratios[kWeighingThreads];
  __shared__ int bins[kWeighingThreads];
  const bool normalized = w.state.mean != nullptr;
  const int thread = static_cast<int>(threadIdx.x), step = w.heads <= kHeadsAThread ? 1 : kWarp, part = thread % step;
  int clipped = 0, outside = 0;
  double sum_of_ratios = 0;
  const int64_t round = static_cast<int64_t>(gridDim.x) * kWeighingThreads;
#pragma unroll 1
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kWeighingThreads; first < batch; first += round) {
    const int count = static_cast<int>(batch - first < kWeighingThreads ? batch - first : kWeighingThreads);
    // Many heads are shared by a warp.
#pragma unroll 1
    for (int i = thread / step; i < count; i += kWeighingThreads / step) {
      double sum[1] = {0};
      const int64_t at = (first + i) * w.heads;
#pragma unroll 1
      for (int64_t k = part; k < w.heads; k += step) sum[0] += real_at(w.logits, at + k);
      if (step > 1) reduce_warp<Add>(sum);
      if (part == 0) ratios[i] = sum[0] / static_cast<double>(w.heads);
    }
    __syncthreads();
    if (thread < count) {
      const int64_t b = first + thread;
      const double t = w.t.data == nullptr ? 0.0 : real_at(w.t, b);
      const LogRatio ratio = log_ratio(ratios[thread], t, w.state, w.options);
      clipped += ratio.clipped, outside += ratio.outside, sum_of_ratios += ratio.r;
      to.h[b] = ratio.finite ? ratio.L : NAN;
      ratios[thread] = ratio.r;
      if (normalized) to.bins[b] = bins[thread] = ratio.finite ? static_cast<int>(ratio_bin(w.state, t)) : -1;
    }
    __syncthreads();
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
    __syncthreads();
  }
  double totals[3] = {static_cast<double>(clipped), static_cast<double>(outside), sum_of_ratios};
  reduce_block<Add>(totals, scratch);
  store_part(to, 0, totals);
}

__global__ void __launch_bounds__(kWeighingThreads)
    fdiv_logarithms_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to) {
  __shared__ Scratch scratch;
  __shared__ double log_means[kWeighedBins];
  const bool normalized = w.state.mean != nullptr;
  const int thread = static_cast<int>(threadIdx.x);
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
  __syncthreads();
  WeightSums sums;
  Extremes found;
  each_own(batch, [&](int64_t b) {
    double L = to.h[b];
    if (!is_finite(L)) return;
    if (normalized) L -= log_means[to.bins[b]];
    const double log_h = log_weight(w.options.divergence, L, w.options.alpha);
    to.h[b] = add(sums, found, log_h) ? log_h : NAN;
  });
  double extremes[2] = {-found.lowest, found.highest};
  reduce_block<Max>(extremes, scratch);
  const double highest = extremes[1];
  if (highest > -INFINITY) {  // or what the block leaves would be NaN, and the batch's with it
    each_own(batch, [&](int64_t b) {
      if (to.h[b] < INFINITY) add_relative(sums, exponential(to.h[b] - highest));
    });
  }
  double totals[3] = {sums.count, sums.total, sums.squares};
  reduce_block<Add>(totals, scratch);
  store_part(to, 3, totals);
  store_part(to, 6, extremes);
}

// h, from what all blocks have left; block 0 also writes figures (stats null: none) and the normalizer's state.
__global__ void __launch_bounds__(kWeighingThreads)
    fdiv_normalize_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Parts to,
                          double* stats) {
  __shared__ Scratch scratch;
  const bool there = threadIdx.x < gridDim.x;
  double part[kPartSums] = {0, 0, 0, 0, 0, 0, -INFINITY, -INFINITY};
#pragma unroll
  for (int n = 0; n < kPartSums; ++n) {
    if (there) part[n] = to.sums[n * gridDim.x + threadIdx.x];
  }
  double extremes[2] = {part[6], part[7]};
  reduce_block<Max>(extremes, scratch);
  const Extremes found{-extremes[0], extremes[1]};
  const double relative = part[7] > -INFINITY ? exponential(part[7] - found.highest) : 0.0;
  double totals[6] = {part[3], part[0], part[1], part[2], part[4] * relative, part[5] * relative * relative};
  reduce_block<Add>(totals, scratch);
  const WeightSums sums{totals[0], totals[1], totals[2], totals[3], totals[4], totals[5]};
  const double log_mean = log_mean_weight(sums, found, w.options.normalize);
  each_own(batch, [&](int64_t b) { to.h[b] = exponential(to.h[b] - log_mean); });  // NaN stays NaN
  if (blockIdx.x != 0) return;
  const bool normalized = w.state.mean != nullptr;
  if (stats != nullptr && threadIdx.x == 0) weight_stats(sums, found, batch, normalized, stats);
  if (normalized && w.state.update) store_means(w.state, to.means);
}

}  // namespace fdkernels::cuda
