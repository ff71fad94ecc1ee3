// A forward call as its kernels take it: raw pointers and the plan's numbers, by value.
#pragma once

#include "core/cuda/device.h"
#include "core/cuda/reals.h"
#include "core/cuda/teams.h"
#include "fdiv/plan_call.h"
#include "fdiv/weight.h"

namespace fdkernels::cuda {

// What the weights of a batch are made of.
struct Weighting {
  Reals logits;  // (B, heads)
  int64_t heads = 1;
  Reals t;
  Reals given;  // h itself, in place of logits
  RatioState state{};
  WeightOptions options{};
};

// Sums of a sample that its team's blocks exchange, and those of a batch that its samples leave for the last block.
constexpr int kExchanged = 4, kRecorded = 5;

struct Results {
  void* loss;
  bool wide_loss;     // double, else float
  float* unscale;     // null: the gradient is stored as it is
  double* stats;      // null: none; then kStats figures and h of every sample
  bool weight_stats;  // the weights' figures too
  double* records;    // (kRecorded, B)
};

struct Call : Teams {
  Problem p;
  Weighting w;
  Results r;
  const double* counts;  // kept entries, in parts; null: every block counts for itself
  int count_parts;
  Reals count;        // N of a mean, where the caller gave it: on the device, or
  double host_count;  // known to the host, at least 1; 0: neither
};

// ---- what a launch needs to know of a kernel; null where a combination is not compiled

using FdivKernel = void (*)(Call);

FdivKernel cluster_kernel(Loads loads, bool general);
FdivKernel grid_kernel(Loads loads, bool general);

// Starts the kernel that the plan names; false where this context cannot hold a grid's blocks all at once.
bool start(const Call& call, const Plan& plan, Loads loads, bool general, int device, void* stream);

// h (B,), figures (null: none) and the normalizer's state, by weighing_blocks.
void launch_weigh(const Weighting& w, int64_t batch, double* h, double* stats, double* scratch, void* stream);
constexpr int kPartSums = 9;  // of a batch, that each of many blocks leaves
constexpr int64_t weigh_scratch(int64_t batch, int64_t bins) {
  const int64_t blocks = weighing_blocks(batch, bins);
  return (blocks == 1 ? batch : blocks * (kPartSums + 2 * bins)) + bins + (batch + 1) / 2;  // doubles
}

// Kept entries of a mask, in `parts` parts.
void launch_count(const Table& mask, int64_t rows, double* counts, int parts, void* stream);

}  // namespace fdkernels::cuda
