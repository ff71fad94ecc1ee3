// How teams of blocks share the samples of a call: the plan's numbers as kernels take them.
#pragma once

#include "core/plan.h"
#include "core/tensors.h"

namespace fdkernels::cuda {

struct Teams {
  int64_t share;  // as the next three in Plan
  int held, buffers;
  int weighing;
  int teams;              // of a grid
  int64_t held_bytes;     // of all buffers; the op's own shared memory lies behind them
  int64_t prefetched;     // as in Plan
  int prefetched_inputs;  // of these
  Samples inputs[6];
  double* exchange;   // grid: (B, team, sums)
  unsigned* tickets;  // kTicket zeros, and zero again: blocks that are done, then each team's arrivals in a grid

  void follow(const Plan& plan, const CallShape& call) {
    share = plan.share;
    held = plan.held;
    buffers = plan.buffers;
    weighing = plan.weighing;
    teams = plan.teams;
    held_bytes = plan.held_bytes(call);
    prefetched = plan.prefetched;
    prefetched_inputs = 0;
  }

  void prefetch(const Samples& input) {
    if (prefetched > 0 && input.data != nullptr) inputs[prefetched_inputs++] = input;
  }
};

}  // namespace fdkernels::cuda
