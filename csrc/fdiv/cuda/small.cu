// The launches of the op fdiv, and the small kernels that may run before the main one: the weights of a batch, and the
// count of a large mask.
#include "core/cuda/launch.h"
#include "core/tables.h"
#include "fdiv/cuda/weigh_many.cuh"

namespace fdkernels::cuda {

namespace {

// One block: logits (B, H) -> h (B,), statistics (7,), and the normalizer's new state; the rest of `to` is scratch.
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

const Kernels loaded{fdiv_weight_kernel, fdiv_ratios_kernel, fdiv_logarithms_kernel, fdiv_normalize_kernel,
                     fdiv_count_kernel};

}  // namespace

bool start(const Call& call, const Plan& plan, Loads loads, bool general, int device, void* stream) {
  const bool grid = plan.schedule == Schedule::grid;
  const FdivKernel kernel = grid ? grid_kernel(loads, general) : cluster_kernel(loads, general);
  return start(grid ? "fdiv_grid_kernel" : "fdiv_cluster_kernel", kernel, call, plan, device, stream);
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

void launch_count(const Table& mask, int64_t rows, double* counts, int parts, void* stream) {
  launch("fdiv_count_kernel", fdiv_count_kernel, parts, kMaxThreads, stream, mask, rows, counts);
}

}  // namespace fdkernels::cuda
