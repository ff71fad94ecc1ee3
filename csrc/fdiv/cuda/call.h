// A forward call of the op fdiv as its kernels take it, by value: raw pointers and the plan's numbers.
#pragma once

#include "core/cuda/device.h"
#include "core/cuda/reals.h"
#include "core/cuda/teams.h"
#include "fdiv/generator.h"
#include "fdiv/plan_call.h"
#include "fdiv/weight.h"

namespace fdkernels::cuda {

// The inputs of a batch's weights.
struct Weighting {
  Reals logits;  // (B, heads)
  int64_t heads = 1;
  Reals t;
  Reals given;  // h itself, in place of logits
  RatioState state{};
  WeightOptions options{};
};

// Sums of a sample that the blocks of its team exchange, and values of a sample's record, which the last block adds up.
constexpr int kExchanged = 4, kRecorded = 5;

struct Results {
  void* loss;
  bool wide_loss;     // double, else float
  float* unscale;     // null: the gradient is stored as it is
  double* stats;      // kStats statistics, then h of every sample; null: none
  bool weight_stats;  // whether to write the weights' statistics too
  double* records;    // (kRecorded, B)
};

struct Call : Teams {
  Problem p;
  Weighting w;
  Results r;
  Generator g;
  Reals generator_logits;  // of g
  const double* counts;    // kept mask entries, in count_parts parts; null: every block counts them itself
  int count_parts;
  Reals count;        // N of a mean, if the caller gave it on the device
  double host_count;  // N of a mean, at least 1, if the caller gave it on the CPU; else 0
};

// ---- the kernels by their combination; null if it is not compiled

using FdivKernel = void (*)(Call);

FdivKernel cluster_kernel(Loads loads, bool general);
FdivKernel grid_kernel(Loads loads, bool general);

// Starts the kernel that the plan names. Returns false if this context cannot hold all blocks of a grid at once.
bool start(const Call& call, const Plan& plan, Loads loads, bool general, int device, void* stream);

// Weighs a batch in launches of its own: writes h (B,), statistics (null: none) and the normalizer's state.
void launch_weigh(const Weighting& w, int64_t batch, double* h, double* stats, double* scratch, void* stream);
constexpr int kPartSums = 9;  // sums that each of many weighing blocks stores
constexpr int64_t weigh_scratch(int64_t batch, int64_t bins) {
  const int64_t blocks = weighing_blocks(batch, bins);
  return (blocks == 1 ? batch : blocks * (kPartSums + 2 * bins)) + bins + (batch + 1) / 2;  // doubles
}

// Counts a mask's kept entries, in `parts` parts.
void launch_count(const Table& mask, int64_t rows, double* counts, int parts, void* stream);

}  // namespace fdkernels::cuda
