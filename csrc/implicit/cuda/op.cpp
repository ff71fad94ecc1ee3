// The op implicit on CUDA tensors, registered through libtorch's stable ABI.
#include "implicit/cuda/launch.h"
#include "implicit/operands.h"
#include "torch/cuda_launch.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;
using fdkernels::Implicit;
using fdkernels::Samples;

ImplicitResults implicit(const ImplicitArguments& arguments) {
  const Tensor& like = arguments.student;
  const Target target(like, "student");
  cuda::ImplicitCall call{};
  Implicit& p = call.p = implicit_of(arguments);
  const RealValues k = per_sample(arguments.score_scale, like, p.batch, "score_scale");
  const RealValues h1 = per_sample(arguments.weight, like, p.batch, "weight");
  const RealValues h2 = per_sample(arguments.square_weight, like, p.batch, "square_weight");
  call.k = {k.reals, arguments.fixed_score_scale};
  call.h1 = {h1.reals, arguments.fixed_weight};
  call.h2 = {h2.reals, arguments.fixed_square_weight};
  const ImplicitTensors out(arguments, p);
  call.loss = out.loss.data_ptr();
  call.wide_loss = out.is_double;
  const fdkernels::ImplicitLoads loads = loads_of(p);
  const int vector = vector_of(loads);
  p.aligned = true;
  for (int i = 0; i < fdkernels::kImplicitInputs; ++i) {
    call.unscales[i] = out.of(i).unscale_data();
    p.aligned = p.aligned && is_aligned(p.inputs[i], p.batch, vector) &&
                is_aligned({p.gradients[i], p.inputs[i].dtype, p.elements}, p.batch, vector);
  }
  const fdkernels::Workload work = workload_of(p, loads);
  std::vector<Workspace> memory;  // keep it until all is queued: memory freed earlier may be handed out again
  call.tickets = take_tickets(target, like, memory);
  launch_planned("implicit", work, target, [&](const fdkernels::Plan& plan) {
    const int64_t exchanged = cuda::exchanged_doubles(plan, p.batch, cuda::kImplicitExchanged);
    Workspace& workspace = memory.emplace_back(Workspace::padded(p.batch) + Workspace::padded(exchanged), like);
    call.records = workspace.take(p.batch);
    call.exchange = workspace.take(exchanged);
    call.follow(plan, work);
    for (const Samples& input : p.inputs) call.prefetch(input);
    return cuda::start(call, plan, loads, target.device, target.stream);
  });
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("implicit_native", (&boxed<ImplicitArguments, ImplicitResults, &implicit>));
}
