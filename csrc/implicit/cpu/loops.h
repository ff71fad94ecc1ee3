// The op implicit's loops over a sample's elements, compiled once per instruction set and chosen at run time.
#pragma once

#include "implicit/math.h"

namespace fdkernels {

struct ImplicitLoops {
  // Sums over elements [begin, end) of sample b.
  ImplicitSums (*reduce)(const Implicit& call, int64_t b, int64_t begin, int64_t end);
  // Stores their gradients. p, q: as they enter a gradient. power: of a float16 gradient.
  void (*apply)(const Implicit& call, int64_t b, int64_t begin, int64_t end, double p, double q, double power);
};

namespace baseline {
extern const ImplicitLoops implicit_loops;
}
namespace v3 {
extern const ImplicitLoops implicit_loops;
}
namespace v4 {
extern const ImplicitLoops implicit_loops;
}

}  // namespace fdkernels
