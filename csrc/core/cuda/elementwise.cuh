// The schedule of ops whose elements need no sum: no block waits for another, and nothing is held on chip. Elements
// come in runs: a run is a sample, or a whole batch whose samples are treated alike.
#pragma once

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/schedules.cuh"

namespace fdkernels::cuda {

constexpr int kElementThreads =
    256;  // in launch bounds with 2 blocks: without a number ptxas saves registers, and spills

// Calls use(Ty{}) with the types of a kernel whose inputs are stored as `dtype`, or as any types if they are mixed.
template <class Use>
auto with_one_type(DType dtype, bool is_mixed, bool is_wide, const Use& use) {
  if (is_mixed) return is_wide ? use(One<AnyType, double>{}) : use(One<AnyType, float>{});
  switch (dtype) {
    case DType::bf16:
      return use(One<Bf16, float>{});
    case DType::f16:
      return use(One<Half, float>{});
    case DType::f32:
      return use(One<float, float>{});
    default:
      return use(One<double, double>{});
  }
}

// How the blocks of a launch share the runs.
struct Runs {
  int64_t blocks, share;  // blocks per run, and elements of a run that each takes
};

// A block's place: its run, and its thread's part of that.
struct OfRun {
  int64_t run;
  Part part;
};

template <class Call>
__device__ inline OfRun of_run(const Call& call, const Runs& runs, int64_t block) {
  const int64_t run = block / runs.blocks;
  return {run, part_of(call.elements, runs.share, 0, static_cast<int>(block - run * runs.blocks),
                       static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x))};
}

// Call has runs, elements (of a run) and aligned. Math(call, run, part) is as in core/cuda/schedules.cuh; this uses T,
// kVector, kWidth, together(), stores_vectors(), recompute() and store(), and stores(): whether there is anything to
// store. block counts the blocks of the call.
template <class Math, class Call>
__device__ inline void by_elements(const Call& call, const Runs& runs, int64_t block) {
  const OfRun of = of_run(call, runs, block);
  Math math(call, of.run, of.part);
  if (math.stores()) scatter(math, call.aligned, of.part, nullptr);
}

// The same for an op that adds up one number of each element, math.total: no block waits, and the block that draws the
// last ticket adds up the sums of all blocks, in an order that the launch fixes. Call has partials, a double for each
// block, and tickets, one that is zero before and after the launch. make(run, part) returns a Math. report(run, total)
// is called once for each run if `each`, else for all of them as run 0.
template <class Call, class Make, class Report>
__device__ inline void sum_by_elements(const Call& call, const Runs& runs, bool each, Scratch& scratch, bool& drawn,
                                       const Make& make, const Report& report) {
  const OfRun of = of_run(call, runs, blockIdx.x);
  const Group group{0, static_cast<int>(blockDim.x), 0, scratch};
  auto math = make(of.run, of.part);
  scatter(math, call.aligned, of.part, nullptr);
  double total[1] = {math.total};
  group.reduce<Add>(total);
  if (each && runs.blocks == 1) {
    if (threadIdx.x == 0) report(of.run, total[0]);
    return;
  }
  if (threadIdx.x == 0) call.partials[blockIdx.x] = total[0];
  if (!draws_last(group, call.tickets, gridDim.x, drawn)) return;
  if (each) {
    const bool by_warp = runs.blocks >= kWarp;
    group.each(call.runs, by_warp, [&](int64_t run, int first, int step) {
      double sum = 0;
#pragma unroll 1
      for (int64_t i = first; i < runs.blocks; i += step) sum += __ldcg(call.partials + run * runs.blocks + i);
      if (by_warp) sum = add_lanes(sum);
      if (first == 0) report(run, sum);
    });
  } else {
    total[0] = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < gridDim.x; i += blockDim.x) total[0] += __ldcg(call.partials + i);
    group.reduce<Add>(total);
    if (threadIdx.x == 0) report(0, total[0]);
  }
  if (threadIdx.x == 0) *call.tickets = 0;
}

// Writes a loss, which is double if `wide`, else float.
__device__ inline void write_loss(void* to, bool wide, int64_t at, double loss) {
  if (wide) {
    static_cast<double*>(to)[at] = loss;
  } else {
    static_cast<float*>(to)[at] = static_cast<float>(loss);
  }
}

// Only as many blocks as keep the device busy: if there is nothing to store, each costs its start alone. At least as
// many as leave a share less than 2^31 elements, which a thread counts in 32 bits.
inline Runs runs_of(int64_t runs, int64_t elements, int vector, int multiprocessors) {
  constexpr int kVectorsAThread = 4;
  const int64_t vectors = ceil_div(elements, vector);
  const int64_t least = std::max<int64_t>(1, ceil_div(elements, int64_t{1} << 30));
  const int64_t most = std::max(least, ceil_div(8 * static_cast<int64_t>(multiprocessors), runs));
  const int64_t blocks = std::clamp(ceil_div(vectors, kElementThreads * kVectorsAThread), least, most);
  return {blocks, ceil_div(vectors, blocks) * vector};
}

template <class Call>
void launch_elements(const char* name, void (*kernel)(Call, Runs), const Call& call, int vector, int multiprocessors,
                     void* stream) {
  const Runs runs = runs_of(call.runs, call.elements, vector, multiprocessors);
  launch(name, kernel, call.runs * runs.blocks, kElementThreads, stream, call, runs);
}

}  // namespace fdkernels::cuda
