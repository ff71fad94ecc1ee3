// The op noising on CUDA tensors, registered through libtorch's stable ABI.
#include "noising/cuda/launch.h"
#include "noising/operands.h"
#include "torch/cuda_launch.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;
using fdkernels::Samples;

std::tuple<Tensor, Tensor> noising(const NoisingArguments& arguments) {
  const Target target(arguments.x, "x");
  const NoisingResults results(arguments);
  const fdkernels::Noising p = noising_of(arguments, results);
  const int vector = cuda::noising_vector(p);
  bool aligned = true;
  const auto contiguous = [&](const void* data) { return Samples{data, p.x.dtype, p.elements}; };
  for (const Samples& each : {p.x, p.noise, contiguous(p.y), contiguous(p.drawn)}) {
    aligned = aligned && is_aligned(each, p.batch, vector);
  }
  cuda::launch_noising({p, p.batch, p.elements, aligned}, target.limits->multiprocessors, target.stream);
  return results.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("noising_native", (&boxed<NoisingArguments, std::tuple<Tensor, Tensor>, &noising>));
}
