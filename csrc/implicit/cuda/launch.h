// A call of the op implicit as its kernels take it, and their launch.
#pragma once

#include "core/cuda/reals.h"
#include "core/cuda/teams.h"
#include "implicit/plan_call.h"

namespace fdkernels::cuda {

// Sums of a sample that the blocks of its team exchange: three, and one that is unused.
constexpr int kImplicitExchanged = 4;

// One value per sample; `fixed` if there is no data.
struct Constant {
  Reals values;
  double fixed;
};

struct ImplicitCall : Teams {
  Implicit p;
  Constant k, h1, h2;
  void* loss;
  bool wide_loss;                    // double, else float
  float* unscales[kImplicitInputs];  // of the gradients; null: stored as it is
  double* records;                   // (B,): losses
};

// Starts the kernel that the plan names. Returns false if this context cannot hold all blocks of a grid at once.
bool start(const ImplicitCall& call, const Plan& plan, ImplicitLoads loads, int device, void* stream);

}  // namespace fdkernels::cuda
