// The op noising on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "noising/cpu/loops.h"
#include "noising/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

std::tuple<Tensor, Tensor> noising(const NoisingArguments& call) {
  const NoisingResults results(call);
  const fdkernels::Noising p = noising_of(call, results);
  const auto mix = fdkernels::cpu::by_isa(fdkernels::baseline::noising, fdkernels::v3::noising, fdkernels::v4::noising);
  fdkernels::cpu::pass_elements(p.batch, p.elements, threads(),
                                [&](int64_t b, int64_t begin, int64_t end) { mix(p, b, begin, end); });
  return results.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("noising_native", (&boxed<NoisingArguments, std::tuple<Tensor, Tensor>, &noising>));
}
