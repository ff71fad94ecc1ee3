// How teams of blocks share the samples of a call: the plan's numbers (core/plan.h) as kernels take them.
#pragma once

#include "core/plan.h"
#include "core/tensors.h"

namespace fdkernels::cuda {

// Doubles of global memory in which a plan's blocks exchange their sums: `each` per sample and block.
inline int64_t exchanged_doubles(const Plan& plan, int64_t batch, int each) {
  return plan.schedule == Schedule::grid ? each * batch * plan.team : 0;
}

struct Teams {
  int64_t share;  // these four as in Plan
  int held, buffers;
  int weighing;
  int teams;              // of a grid
  int64_t held_bytes;     // of all buffers; the op's own dynamic shared memory follows them
  int64_t prefetched;     // as in Plan
  int prefetched_inputs;  // how many of `inputs` are prefetched
  Samples inputs[6];
  double* exchange;   // grid: each block's sums of each sample, (B, team, Op::kExchanged)
  unsigned* tickets;  // a ticket (core/cuda/device.h), zero before and after the launch

  void follow(const Plan& plan, const Workload& call) {
    share = plan.share;
    held = plan.held;
    buffers = plan.buffers;
    weighing = plan.weighing;
    teams = plan.teams;
    held_bytes = plan.held_bytes(call);
    prefetched = plan.prefetched;
    prefetched_inputs = 0;
  }

  // Adds an input to those that kernels prefetch.
  void prefetch(const Samples& input) {
    if (prefetched > 0 && input.data != nullptr) inputs[prefetched_inputs++] = input;
  }
};

}  // namespace fdkernels::cuda
