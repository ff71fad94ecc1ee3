// The backward of every loss: a stored gradient times the upstream.
#pragma once

#include "core/cuda/reals.h"
#include "core/tensors.h"

namespace fdkernels::cuda {

// out = upstream * unscale * gradient, in runs.
struct Scale {
  const void* gradient;
  void* out;
  DType dtype;
  Reals upstream;  // one value, or one a run `upstream_stride` apart
  int64_t upstream_stride;
  const float* unscale;  // null: none
  int64_t runs, elements;
  bool aligned;
};

void launch_scale(const Scale& scale, int multiprocessors, void* stream);

}  // namespace fdkernels::cuda
