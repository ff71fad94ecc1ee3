// The backward of every loss on the CPU: spreads the loops of scale_loops.cpp over threads.
#include "core/cpu/scale.h"

#include "core/cpu/isa.h"

namespace fdkernels::cpu {

void scale_gradient(const void* gradient, DType dtype, int64_t batch, int64_t elements, const double* factor,
                    bool per_sample, void* out, const Threads& threads) {
  const ScaleFunction function = by_isa(baseline::scale, v3::scale, v4::scale);
  const int64_t size = size_of(dtype);
  const int64_t runs = per_sample ? batch : 1, length = per_sample ? elements : batch * elements;
  for (int64_t b = 0; b < runs; ++b) {
    if (factor[b] == 1.0 && out == gradient) continue;
    parallel(threads, length, kGrain * 4, [&](int64_t begin, int64_t end) {
      const int64_t offset = (b * length + begin) * size;
      function(static_cast<const char*>(gradient) + offset, dtype, end - begin, factor[b],
               static_cast<char*>(out) + offset);
    });
  }
}

}  // namespace fdkernels::cpu
