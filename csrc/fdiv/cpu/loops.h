// The op fdiv's loops over a sample's elements, compiled once per instruction set and chosen at run time.
#pragma once

#include "fdiv/problem.h"

namespace fdkernels {

// Sums over elements [begin, end) of sample b.
using ReduceFunction = Sums (*)(const Problem& problem, int64_t b, int64_t begin, int64_t end);
// Writes coefficient * m * c * (f - tau) into the gradient of elements [begin, end); 0 if masked.
using ApplyFunction = void (*)(const Problem& problem, int64_t b, int64_t begin, int64_t end, double coefficient);
struct Loops {
  ReduceFunction reduce, reduce_wide;
  ApplyFunction apply, apply_wide;
};

namespace baseline {
extern const Loops loops;
}
namespace v3 {
extern const Loops loops;
}
namespace v4 {
extern const Loops loops;
}

}  // namespace fdkernels
