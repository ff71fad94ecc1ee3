// The backward of every loss on the CPU: a stored gradient times the upstream.
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

// out = gradient * factor[b] for each sample b of `elements` elements; one factor for all if not per_sample. Reads and
// writes nothing if out is gradient and the factor is 1.
void scale_gradient(const void* gradient, DType dtype, int64_t batch, int64_t elements, const double* factor,
                    bool per_sample, void* out, const Threads& threads);

}  // namespace cpu

}  // namespace fdkernels
