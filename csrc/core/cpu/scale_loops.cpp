// The loop that scales a gradient, compiled once per instruction set. Keep functions in the unnamed namespace: see
// core/numbers.h.
#include "core/cpu/blocks.h"
#include "core/cpu/scale.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

template <class T>
void scale_blocks(const void* gradient, DType dtype, int64_t count, T factor, void* out) {
  T buffer[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int run = static_cast<int>(count - at < kBlock ? count - at : kBlock);
    widen(gradient, dtype, at, run, buffer);
    for (int i = 0; i < run; ++i) buffer[i] *= factor;
    narrow(buffer, run, out, dtype, at);
  }
}

void scale_any(const void* gradient, DType dtype, int64_t count, double factor, void* out) {
  if (dtype == DType::f64) {
    scale_blocks<double>(gradient, dtype, count, factor, out);
  } else {
    scale_blocks<float>(gradient, dtype, count, static_cast<float>(factor), out);
  }
}

}  // namespace

const ScaleFunction scale = scale_any;

}  // namespace fdkernels::FDKERNELS_ISA
