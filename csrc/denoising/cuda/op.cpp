// The op denoising on CUDA tensors, registered through libtorch's stable ABI.
#include "denoising/cuda/launch.h"
#include "denoising/operands.h"
#include "torch/cuda_launch.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;
using fdkernels::Samples;

DenoisingResults denoising(const DenoisingArguments& arguments) {
  const Tensor& like = arguments.pred;
  const Target target(like, "pred");
  cuda::DenoisingCall call{};
  fdkernels::Denoising& p = call.p = denoising_of(arguments);
  call.runs = p.batch, call.elements = p.elements;
  call.host_count = host_count(arguments.divisor);
  const RealValues count = device_count(arguments.divisor, like);
  call.count = count.reals;
  const LossResult out(like, p.reduction);
  const GradientResult gradient(like, out, arguments.with_grad);
  p.gradient = gradient.data();
  call.loss = out.loss.data_ptr();
  call.wide_loss = out.is_double;
  call.unscale = gradient.unscale_data();
  const int vector = cuda::denoising_vector(p), multiprocessors = target.limits->multiprocessors;
  call.aligned = is_aligned({p.gradient, p.pred.dtype, p.elements}, p.batch, vector);
  for (const Samples* input : p.inputs()) call.aligned = call.aligned && is_aligned(*input, p.batch, vector);
  std::vector<Workspace> memory;  // keep it until all is queued: memory freed earlier may be handed out again
  call.tickets = take_tickets(target, like, memory);
  const int64_t doubles = cuda::denoising_blocks(p, multiprocessors);
  call.partials = memory.emplace_back(Workspace::padded(doubles), like).take(doubles);
  cuda::launch_denoising(call, multiprocessors, target.stream);
  return {out.loss, gradient.gradient, gradient.unscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("denoising_native", (&boxed<DenoisingArguments, DenoisingResults, &denoising>));
}
