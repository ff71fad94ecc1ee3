// The schedule of ops without sums: no block waits for another, and nothing is held on chip. Elements come in runs: a
// run is a sample, or a whole batch whose samples are treated alike.
#pragma once

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/schedules.cuh"

namespace fdkernels::cuda {

constexpr int kElementThreads = 256;

// How the blocks of a launch share the runs.
struct Runs {
  int64_t blocks, share;  // blocks per run, and elements of a run that each takes
};

// Call has runs, elements (of a run) and aligned. Math(call, run, part) is as in core/cuda/schedules.cuh; this uses T,
// kVector, kWidth, together(), stores_vectors(), recompute() and store(), and stores(): whether there is anything to
// store.
template <class Math, class Call>
__device__ inline void by_elements(const Call& call, const Runs& runs) {
  const int64_t run = blockIdx.x / runs.blocks;
  const int block = static_cast<int>(blockIdx.x - run * runs.blocks);
  const Part part =
      part_of(call.elements, runs.share, 0, block, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
  Math math(call, run, part);
  if (math.stores()) scatter(math, call.aligned, part, nullptr);
}

// Only as many blocks as keep the device busy: if there is nothing to store, each costs its start alone. At least as
// many as leave a share less than 2^31 elements, which a thread counts in 32 bits.
template <class Call>
void launch_elements(const char* name, void (*kernel)(Call, Runs), const Call& call, int vector, int multiprocessors,
                     void* stream) {
  constexpr int kVectorsAThread = 4;
  const int64_t vectors = ceil_div(call.elements, vector);
  const int64_t least = std::max<int64_t>(1, ceil_div(call.elements, int64_t{1} << 30));
  const int64_t most = std::max(least, ceil_div(8 * static_cast<int64_t>(multiprocessors), call.runs));
  const int64_t blocks = std::clamp(ceil_div(vectors, kElementThreads * kVectorsAThread), least, most);
  launch(name, kernel, call.runs * blocks, kElementThreads, stream, call,
         Runs{blocks, ceil_div(vectors, blocks) * vector});
}

}  // namespace fdkernels::cuda
