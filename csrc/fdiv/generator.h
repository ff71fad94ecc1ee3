// The generator's term of the op fdiv, weight * sum_bk softplus(-l_bk) / divisor, and the gradient of its logits l, for
// every device.
#pragma once

#include "core/tensors.h"

namespace fdkernels {

struct Generator {
  Samples logits;  // (B, heads), contiguous; absent if the call has no such term
  int64_t heads;
  double scale;           // weight / divisor
  double gradient_scale;  // what the slopes are stored times: scale, or for float16 a power of two / divisor
  double mean;            // of all terms: what their sum is multiplied by, for the statistics
  bool drops;             // samples whose mean over heads is not finite
  void* gradient;         // shaped like the logits; null: none
  float* unscale;         // scale / gradient_scale, once or for each sample's loss; null: none
  float unscale_value;
  double* sums;  // CUDA: of each sample's softplus
};

}  // namespace fdkernels
