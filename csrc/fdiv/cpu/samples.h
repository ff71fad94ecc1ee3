// The op fdiv on the CPU, over all samples of a batch.
#pragma once

#include "core/cpu/threads.h"
#include "fdiv/problem.h"

namespace fdkernels::cpu {

// Writes problem.gradient, loss, unscale and stats. count: N of a mean that the caller gave; 0: the unmasked elements.
// loss: one value, or one per sample with Reduction::none. unscale: as many; null if the gradient is not float16.
// stats: null, or kStats values, of which the caller writes the first kWeightStats.
void fdiv(const Problem& problem, double count, const Threads& threads, double* loss, float* unscale, double* stats);

}  // namespace fdkernels::cpu
