// The flagship op on the CPU: schedule over samples, blocks and threads.
#pragma once

#include "core/cpu/threads.h"
#include "fdiv/problem.h"

namespace fdkernels::cpu {

// count: N of a mean that the caller gave; 0: the unmasked elements.
// Everything the op returns beside the gradient, which `problem.gradient` receives. loss: one value, or one per sample
// with Reduction::none; unscale: as many, written for a float16 gradient alone; stats: null, or kStats values of which
// the first kWeightStats are the caller's.
void fdiv(const Problem& problem, double count, const Threads& threads, double* loss, float* unscale, double* stats);

}  // namespace fdkernels::cpu
