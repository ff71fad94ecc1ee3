// What surrounds the flagship: weights of a large batch, kept elements of a large mask, the backward.
#include "fdkernels/sample.h"
#include "launch.h"
#include "weigh_many.cuh"

namespace fdkernels::cuda {

namespace {

// One block: logits (B, H) -> h (B,), figures (7,), and the normalizer's new state; the rest of `to` is scratch.
__global__ void __launch_bounds__(kMaxThreads, 1)
    fdiv_weight_kernel(const __grid_constant__ Weighting w, int64_t batch, const __grid_constant__ Weights to,
                       double* stats) {
  __shared__ Scratch scratch;
  __shared__ Weighed weighed;
  const Group block{0, static_cast<int>(blockDim.x), 0, scratch};
  weigh_batch(block, w, batch, to, weighed, [] {});
  const bool normalized = w.state.mean != nullptr;
  if (stats != nullptr && threadIdx.x == 0) {
    weight_stats(weighed.sums, weighed.extremes, batch, normalized, false, stats);
  }
  if (normalized && w.state.update) store_means(block, w.state, to.means);  // every thread has read the old state
}

// Block i: kept entries of its part of the mask -> counts[i].
__global__ void __launch_bounds__(kMaxThreads, 1)
    fdiv_count_kernel(const __grid_constant__ Table mask, int64_t rows, double* counts) {
  __shared__ Scratch scratch;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  double kept[1] = {static_cast<double>(kept_entries(mask, rows, first, step))};
  Group{0, static_cast<int>(blockDim.x), 0, scratch}.reduce<Add>(kept);
  if (threadIdx.x == 0) counts[blockIdx.x] = kept[0];
}

// What a batch without samples gives: no loss, and figures of nothing.
__global__ void fdiv_empty_kernel(const __grid_constant__ Results r, bool with_loss) {
  if (with_loss && r.wide_loss) *static_cast<double*>(r.loss) = 0;
  if (with_loss && !r.wide_loss) *static_cast<float*>(r.loss) = 0;
  if (with_loss && r.unscale != nullptr) *r.unscale = 1;
  if (r.stats == nullptr) return;
  for (int i = 0; i < kStats; ++i) r.stats[i] = NAN;
  r.stats[kWeightStats] = r.stats[kWeightStats + 2] = 0;
}

// out = upstream * unscale * gradient, for the whole batch (one run) or per sample. In place, a factor of 1 moves
// nothing: each block reads it and returns. Otherwise reads and writes the gradient once.
template <class Stored, class T>
__global__ void __launch_bounds__(kMaxThreads)
    fdiv_scale_kernel(const __grid_constant__ Scale scale, int64_t blocks_a_run, int64_t vectors_a_block) {
  constexpr int V = 16 / sizeof(Stored);
  const int64_t run = blockIdx.x / blocks_a_run, block = blockIdx.x - run * blocks_a_run;
  T factor = static_cast<T>(real_at(scale.upstream, run * scale.upstream_stride));
  if (scale.unscale != nullptr) factor *= static_cast<T>(scale.unscale[run]);
  if (factor == 1 && scale.out == scale.gradient) return;
  const Images gradient{scale.gradient, scale.dtype, scale.elements};
  const int64_t begin = block * vectors_a_block * V;
  const int64_t last = begin + vectors_a_block * V < scale.elements ? begin + vectors_a_block * V : scale.elements;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * V; i < last; i += static_cast<int64_t>(blockDim.x) * V) {
    if (scale.aligned && i + V <= last) {
      T values[V];
      // Not through the read-only cache: out may be the gradient.
      Words words = *reinterpret_cast<const Words*>(vector_at<Stored>(gradient, run, i));
      widen<Stored>(words, scale.dtype, values);
#pragma unroll
      for (int k = 0; k < V; ++k) values[k] *= factor;
      write<Stored>(scale.out, scale.dtype, run * scale.elements + i, values);
    } else {
      for (int64_t k = i; k < last && k < i + V; ++k) {
        const T value[1] = {static_cast<T>(number(*vector_at<Stored>(gradient, run, k))) * factor};
        write<Stored>(scale.out, scale.dtype, run * scale.elements + k, value);
      }
    }
  }
}

}  // namespace

std::array<const void*, 10> small_kernels() {
  const auto address = [](auto* kernel) { return reinterpret_cast<const void*>(kernel); };
  return {address(fdiv_weight_kernel),
          address(fdiv_ratios_kernel),
          address(fdiv_logarithms_kernel),
          address(fdiv_normalize_kernel),
          address(fdiv_count_kernel),
          address(fdiv_empty_kernel),
          address(fdiv_scale_kernel<float, float>),
          address(fdiv_scale_kernel<double, double>),
          address(fdiv_scale_kernel<Bf16, float>),
          address(fdiv_scale_kernel<Half, float>)};
}

void launch_weigh(const Weighting& w, int64_t batch, double* h, double* stats, double* scratch, void* stream) {
  const int64_t bins = w.state.bins, blocks = weighing_blocks(batch, bins);
  double* means = scratch + (blocks == 1 ? batch : blocks * (kPartSums + 2 * bins));
  int* bin = reinterpret_cast<int*>(means + bins);
  if (blocks == 1) {
    const Weights to{h, scratch, means, bin};
    launch("fdiv_weight_kernel", fdiv_weight_kernel, 1, kMaxThreads, stream, w, batch, to, stats);
    return;
  }
  const Parts to{h, bin, scratch, scratch + blocks * kPartSums, means};
  launch("fdiv_ratios_kernel", fdiv_ratios_kernel, blocks, kWeighManyThreads, stream, w, batch, to);
  launch("fdiv_logarithms_kernel", fdiv_logarithms_kernel, blocks, kWeighManyThreads, stream, w, batch, to);
  launch("fdiv_normalize_kernel", fdiv_normalize_kernel, blocks, kWeighManyThreads, stream, w, batch, to, stats);
}

void launch_empty(const Results& r, bool with_loss, void* stream) {
  launch("fdiv_empty_kernel", fdiv_empty_kernel, 1, 1, stream, r, with_loss);
}

void launch_count(const Table& mask, int64_t rows, double* counts, int parts, void* stream) {
  launch("fdiv_count_kernel", fdiv_count_kernel, parts, kMaxThreads, stream, mask, rows, counts);
}

void launch_scale(const Scale& scale, int multiprocessors, void* stream) {
  const ScalePlan plan = plan_scale(scale.runs, scale.elements, 16 / size_of(scale.dtype), multiprocessors);
  const auto start = [&](auto* kernel) {
    launch("fdiv_scale_kernel", kernel, scale.runs * plan.blocks_a_run, plan.threads, stream, scale, plan.blocks_a_run,
           plan.vectors_a_block);
  };
  switch (scale.dtype) {
    case DType::f32:
      return start(fdiv_scale_kernel<float, float>);
    case DType::f64:
      return start(fdiv_scale_kernel<double, double>);
    case DType::bf16:
      return start(fdiv_scale_kernel<Bf16, float>);
    case DType::f16:
      return start(fdiv_scale_kernel<Half, float>);
  }
}

}  // namespace fdkernels::cuda
