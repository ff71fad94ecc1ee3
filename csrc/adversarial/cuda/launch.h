// The op adversarial on a CUDA device.
#pragma once

#include "adversarial/math.h"

namespace fdkernels::cuda {

// As core/cuda/elementwise.cuh takes it.
struct AdversarialCall {
  Adversarial p;
  int64_t runs, elements;
  bool aligned;
  double* partials;  // one for each block (adversarial_blocks)
  unsigned* tickets;
  void* loss;
  bool wide_loss;
  float *unscale, *others_unscale;  // of float16 gradients; null: none
  float unscale_value;
};

constexpr int kAdversarialVector = 2;  // elements of a vector

int64_t adversarial_blocks(const Adversarial& call, int multiprocessors);

void launch_adversarial(const AdversarialCall& call, int multiprocessors, void* stream);

}  // namespace fdkernels::cuda
