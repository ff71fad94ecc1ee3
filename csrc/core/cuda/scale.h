// The backward of every loss on CUDA tensors: its stored gradients times the upstream.
#pragma once

#include <vector>

#include "core/cuda/reals.h"
#include "core/tensors.h"

namespace fdkernels::cuda {

// out = upstream * unscale * gradient. A run has one factor: it is a sample, or the whole batch.
struct Scale {
  const void* gradient;
  void* out;
  DType dtype;
  Reals upstream;  // one value per run, upstream_stride apart
  int64_t upstream_stride;
  const float* unscale;    // one value per run; null: none
  int64_t runs, elements;  // elements per run
  bool aligned;            // every run of both tensors starts at a multiple of 16 bytes
};

// In one launch, if there are at most kMostScaled.
constexpr int kMostScaled = 3;
void launch_scale(const std::vector<Scale>& scales, int multiprocessors, void* stream);

}  // namespace fdkernels::cuda
