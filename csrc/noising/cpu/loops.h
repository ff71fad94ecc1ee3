// The op noising's loop over elements, compiled once per instruction set and chosen at run time.
#pragma once

#include "noising/math.h"

namespace fdkernels {

// Writes elements [begin, end) of sample b.
using NoisingFunction = void (*)(const Noising& call, int64_t b, int64_t begin, int64_t end);

namespace baseline {
extern const NoisingFunction noising;
}
namespace v3 {
extern const NoisingFunction noising;
}
namespace v4 {
extern const NoisingFunction noising;
}

}  // namespace fdkernels
