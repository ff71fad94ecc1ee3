// The op adversarial's loop over elements, compiled once per instruction set and chosen at run time.
#pragma once

#include "adversarial/math.h"

namespace fdkernels {

// Returns the sum of the terms of elements [begin, end) of sample b, and stores their gradients.
using AdversarialFunction = double (*)(const Adversarial& call, int64_t b, int64_t begin, int64_t end);

namespace baseline {
extern const AdversarialFunction adversarial;
}
namespace v3 {
extern const AdversarialFunction adversarial;
}
namespace v4 {
extern const AdversarialFunction adversarial;
}

}  // namespace fdkernels
