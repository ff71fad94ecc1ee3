// The flagship op on the CPU: schedule over samples, blocks and threads.
#pragma once

#include "fdkernels/fdiv.h"

namespace fdkernels::cpu {

// Runs body over [0, count) in parallel pieces of at least `grain`.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);

struct Threads {
  int64_t count;
  ParallelFor parallel_for;
};

// divisor: N of a mean that the caller gave; 0: the unmasked elements.
// Everything the op returns beside the gradient, which `problem.gradient` receives. loss: one value, or one per sample
// with Reduction::none; unscale: as many, written for a float16 gradient alone; stats: null, or kStats values of which
// the first kWeightStats are the caller's.
void fdiv(const Problem& problem, double divisor, const Threads& threads, double* loss, float* unscale, double* stats);

// out = gradient * factor[b], samples of `elements` each; per_sample false: one factor. Moves nothing where out is
// gradient and the factor is 1.
void scale_gradient(const void* gradient, DType dtype, int64_t batch, int64_t elements, const double* factor,
                    bool per_sample, void* out, const Threads& threads);

}  // namespace fdkernels::cpu
