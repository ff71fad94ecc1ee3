// The backward of every loss on the CPU: spreads the loops of scale_loops.cpp over threads.
#include "core/cpu/scale.h"

#include <algorithm>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"

namespace fdkernels::cpu {

void scale_gradient(const void* gradient, DType dtype, int64_t batch, int64_t elements, const double* factor,
                    bool per_sample, void* out, const Threads& threads) {
  const ScaleFunction function = by_isa(baseline::scale, v3::scale, v4::scale);
  const int64_t size = size_of(dtype);
  const int64_t runs = per_sample ? batch : 1, length = per_sample ? elements : batch * elements;
  const auto is_done = [&](double by) { return by == 1.0 && out == gradient; };
  if (std::all_of(factor, factor + runs, is_done)) return;
  pass_elements(runs, length, threads, [&](int64_t b, int64_t begin, int64_t end) {
    if (is_done(factor[b])) return;
    const int64_t offset = (b * length + begin) * size;
    function(static_cast<const char*>(gradient) + offset, dtype, end - begin, factor[b],
             static_cast<char*>(out) + offset);
  });
}

}  // namespace fdkernels::cpu
