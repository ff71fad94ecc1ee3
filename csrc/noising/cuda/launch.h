// The op noising on a CUDA device.
#pragma once

#include "noising/math.h"

namespace fdkernels::cuda {

// As core/cuda/elementwise.cuh takes it: a run is a sample.
struct NoisingCall {
  Noising p;
  int64_t runs, elements;
  bool aligned;
};

// The elements of a vector of the call's kernel.
int noising_vector(const Noising& call);

void launch_noising(const NoisingCall& call, int multiprocessors, void* stream);

}  // namespace fdkernels::cuda
