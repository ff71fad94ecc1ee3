// The op denoising on a CUDA device.
#pragma once

#include "core/cuda/reals.h"
#include "denoising/math.h"

namespace fdkernels::cuda {

// As core/cuda/elementwise.cuh takes it: a run is a sample.
struct DenoisingCall {
  Denoising p;
  int64_t runs, elements;
  bool aligned;
  double* partials;  // one for each block (denoising_blocks)
  unsigned* tickets;
  double host_count;  // N that the caller gives; 0: none, or in `count`
  Reals count;
  void* loss;
  bool wide_loss;
  float* unscale;  // of a float16 gradient; null: none
};

// The elements of a vector of the call's kernel.
int denoising_vector(const Denoising& call);

int64_t denoising_blocks(const Denoising& call, int multiprocessors);

void launch_denoising(const DenoisingCall& call, int multiprocessors, void* stream);

}  // namespace fdkernels::cuda
