// The backward of every loss: a stored gradient times the upstream.
#pragma once

#include "core/cpu/threads.h"
#include "core/tensors.h"

namespace fdkernels {

// out = gradient * factor, rounded once; out may be gradient. Compiled once per instruction set.
using ScaleFunction = void (*)(const void* gradient, DType dtype, int64_t count, double factor, void* out);

namespace baseline {
extern const ScaleFunction scale;
}
namespace v3 {
extern const ScaleFunction scale;
}
namespace v4 {
extern const ScaleFunction scale;
}

namespace cpu {

// out = gradient * factor[b], samples of `elements` each; per_sample false: one factor. Moves nothing where out is
// gradient and the factor is 1.
void scale_gradient(const void* gradient, DType dtype, int64_t batch, int64_t elements, const double* factor,
                    bool per_sample, void* out, const Threads& threads);

}  // namespace cpu

}  // namespace fdkernels
