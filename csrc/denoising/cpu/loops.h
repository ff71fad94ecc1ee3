// The op denoising's loop over elements, compiled once per instruction set and chosen at run time.
#pragma once

#include "denoising/math.h"

namespace fdkernels {

// Returns the sum of w d^2 over elements [begin, end) of sample b, and stores factor * w * d as their gradient.
using DenoisingFunction = double (*)(const Denoising& call, int64_t b, int64_t begin, int64_t end, double factor);

namespace baseline {
extern const DenoisingFunction denoising;
}
namespace v3 {
extern const DenoisingFunction denoising;
}
namespace v4 {
extern const DenoisingFunction denoising;
}

}  // namespace fdkernels
