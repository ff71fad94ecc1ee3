// The op adversarial on CUDA tensors, registered through libtorch's stable ABI.
#include "adversarial/cuda/launch.h"
#include "adversarial/operands.h"
#include "torch/cuda_launch.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;

AdversarialResults::All adversarial(const AdversarialArguments& arguments) {
  const Tensor& like = arguments.logits;
  const Target target(like, "logits");
  cuda::AdversarialCall call{};
  fdkernels::Adversarial& p = call.p = adversarial_of(arguments);
  const AdversarialResults out(arguments, p);
  call.runs = p.batch, call.elements = p.elements;
  call.loss = out.loss.loss.data_ptr();
  call.wide_loss = out.loss.is_double;
  call.unscale = out.gradient.unscale_data();
  call.others_unscale = out.others_gradient.unscale_data();
  call.unscale_value = static_cast<float>(1 / out.power);
  const auto aligned = [&](const fdkernels::Samples& samples) {
    return is_aligned(samples, p.batch, cuda::kAdversarialVector);
  };
  call.aligned = aligned(p.logits) && aligned(p.others) && aligned({p.gradient.data, p.logits.dtype, p.elements}) &&
                 aligned({p.others_gradient.data, p.others.dtype, p.elements});
  const int multiprocessors = target.limits->multiprocessors;
  std::vector<Workspace> memory;  // keep it until all is queued: memory freed earlier may be handed out again
  call.tickets = take_tickets(target, like, memory);
  const int64_t doubles = cuda::adversarial_blocks(p, multiprocessors);
  call.partials = memory.emplace_back(Workspace::padded(doubles), like).take(doubles);
  cuda::launch_adversarial(call, multiprocessors, target.stream);
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("adversarial_native", (&boxed<AdversarialArguments, AdversarialResults::All, &adversarial>));
}
