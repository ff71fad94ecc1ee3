// The loops over a sample's elements, compiled once per instruction set and picked at run time.
#pragma once

#include "fdkernels/fdiv.h"

namespace fdkernels {

// Sums over elements [begin, end) of sample b.
using ReduceFunction = Sums (*)(const Problem& problem, int64_t b, int64_t begin, int64_t end);
// Writes coefficient * scale * c * (f - tau) into the gradient of elements [begin, end); 0 where masked.
using ApplyFunction = void (*)(const Problem& problem, int64_t b, int64_t begin, int64_t end, double coefficient);
// out = gradient * factor, rounded once; out may be gradient.
using ScaleFunction = void (*)(const void* gradient, DType dtype, int64_t count, double factor, void* out);

struct Kernels {
  const char* isa;
  ReduceFunction reduce, reduce_wide;
  ApplyFunction apply, apply_wide;
  ScaleFunction scale;
};

namespace baseline {
extern const Kernels kernels;
}
namespace v3 {
extern const Kernels kernels;
}
namespace v4 {
extern const Kernels kernels;
}

// The widest that this processor runs; FDKERNELS_CPU_ISA=baseline|v3|v4 forces one, for tests.
const Kernels& kernels();

}  // namespace fdkernels
