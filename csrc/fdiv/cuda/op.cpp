// The ops fdiv and fdiv_weight on CUDA tensors, registered through libtorch's stable ABI: from tensors to a plan and
// its launches. Nothing here reads a CUDA tensor's values or waits for the device.

#include "fdiv/cuda/call.h"
#include "fdiv/operands.h"
#include "torch/cuda_launch.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;
using cuda::Call;
using fdkernels::Loads;
using fdkernels::Problem;
using fdkernels::Samples;

// ---- what comes before the main launch

// The number of parts, one block each, in which a mask is counted.
int mask_parts(const Target& target) {
  return 2 * target.limits->multiprocessors;
}

// Doubles that a plan's launches need.
int64_t workspace_of(const Call& call, const fdkernels::Plan& plan, const Target& target) {
  const int64_t batch = call.p.batch;
  int64_t doubles = Workspace::padded(cuda::kRecorded * batch) +
                    Workspace::padded(cuda::exchanged_doubles(plan, batch, cuda::kExchanged));
  if (call.g.logits.data != nullptr) doubles += Workspace::padded(batch);
  if (plan.weigh_first) {
    doubles += Workspace::padded(batch) + Workspace::padded(cuda::weigh_scratch(batch, call.w.state.bins));
  }
  if (plan.count_first) doubles += Workspace::padded(mask_parts(target));
  return doubles;
}

// Queues the plan's launches before the main one, and takes workspace. If the main launch is refused, the next plan of
// this call finds them done: `call` and `work` have changed.
void queue_first(Call& call, fdkernels::Workload& work, const fdkernels::Plan& plan, const Target& target,
                 Workspace& workspace) {
  const Problem& p = call.p;
  cuda::Results& r = call.r;
  r.records = workspace.take(cuda::kRecorded * p.batch);
  if (call.g.logits.data != nullptr) call.g.sums = workspace.take(p.batch);
  call.exchange = workspace.take(cuda::exchanged_doubles(plan, p.batch, cuda::kExchanged));
  if (plan.weigh_first) {
    double* h = r.stats != nullptr ? r.stats + fdkernels::kStats : workspace.take(p.batch);
    double* scratch = workspace.take(cuda::weigh_scratch(p.batch, call.w.state.bins));
    cuda::launch_weigh(call.w, p.batch, h, r.stats, scratch, target.stream);
    call.w = {};
    call.w.given = {h, cuda::RealType::f64};
    r.weight_stats = false;
    work.heads = work.bins = 0;
  }
  if (plan.count_first) {
    call.count_parts = mask_parts(target);
    double* counts = workspace.take(call.count_parts);
    cuda::launch_count(p.mask, p.mask.batch_stride == 0 ? 1 : p.batch, counts, call.count_parts, target.stream);
    call.counts = counts;
    work.mask_entries = 0;
  }
}

const cuda::ClusterKernel asked{reinterpret_cast<const void*>(cuda::cluster_kernel(Loads::bf16, false))};

// ---- the ops

// A Weighting from either op's arguments. This keeps the tensors alive that the call points into.
struct WeighingValues {
  RealValues logits, t;
  cuda::Weighting w;

  template <class Arguments>
  WeighingValues(const Arguments& call, const Tensor& like, int64_t batch) {
    w.heads = call.logits ? heads_of(*call.logits, batch) : 1;
    logits = call.logits ? real_values(*call.logits, like, batch * w.heads, "logits") : RealValues{like, {}};
    t = per_sample(call.t, like, batch, "t");
    w.logits = logits.reals;
    w.t = t.reals;
    w.state = ratio_state(call, like);
    w.options = weight_options(call);
    if (!call.logits) w.state = {};
  }
};

WeightResults fdiv_weight(const FdivWeightArguments& call) {
  expect(call.logits.has_value() && call.logits->dim() > 0, "logits: expected shape (B,) or (B, heads)");
  const Tensor& logits = *call.logits;
  const Target target(logits, "logits");
  const int64_t batch = logits.size(0);
  const WeighingValues values(call, logits, batch);
  Tensor weight = new_tensor({batch}, ScalarType::Double, logits);
  Tensor stats = new_tensor({fdkernels::kWeightStats}, ScalarType::Double, logits);
  const int64_t scratch = cuda::weigh_scratch(batch, values.w.state.bins);
  Workspace workspace(Workspace::padded(scratch), logits);
  cuda::launch_weigh(values.w, batch, static_cast<double*>(weight.data_ptr()), static_cast<double*>(stats.data_ptr()),
                     workspace.take(scratch), target.stream);
  return {weight, stats};
}

FdivResults fdiv(const FdivArguments& arguments) {
  const Target target(arguments.student, "student");
  const Tensor& like = arguments.student;
  Call call{};
  Problem& p = call.p = problem(arguments);
  const WeighingValues values(arguments, like, p.batch);
  const RealValues given = per_sample(arguments.weight, like, p.batch, "weight");
  call.w = values.w;
  call.w.given = given.reals;
  call.host_count = host_count(arguments.divisor);
  const RealValues count = device_count(arguments.divisor, like);
  call.count = count.reals;

  const FdivTensors out(arguments, p);
  cuda::Results& r = call.r;
  r.loss = out.loss.data_ptr();
  r.wide_loss = out.is_double;
  r.unscale = out.unscale_data();
  r.stats = arguments.with_stats ? static_cast<double*>(out.stats.data_ptr()) : nullptr;
  r.weight_stats = true;
  p.gradient = out.data();
  const GeneratorTensors generator(arguments, out);
  call.g = generator.term;
  if (arguments.gan_logits) call.generator_logits = {call.g.logits.data, *real_type(generator.logits.scalar_type())};
  const Loads loads = loads_of(p);
  const bool general = is_general(p, loads);
  const int vector = vector_of(loads);
  p.aligned = is_aligned({p.gradient, p.student.dtype, p.elements}, p.batch, vector);
  for (const Samples* input : p.inputs()) p.aligned = p.aligned && is_aligned(*input, p.batch, vector);
  fdkernels::Workload work = workload_of(p, loads, general, arguments.logits ? values.w.heads : 0, values.w.state.bins,
                                         arguments.divisor.has_value());
  std::vector<Workspace> memory;  // keep it until all is queued: memory freed earlier may be handed out again
  call.tickets = take_tickets(target, like, memory);
  launch_planned("fdiv", work, target, [&](const fdkernels::Plan& plan) {
    queue_first(call, work, plan, target, memory.emplace_back(workspace_of(call, plan, target), like));
    call.follow(plan, work);
    for (const Samples* input : p.inputs()) {
      if (p.dmd_scale || p.with_stats || (input != &p.student && input != &p.noisy)) call.prefetch(*input);
    }
    return cuda::start(call, plan, loads, general, target.device, target.stream);
  });
  return results_of(out, generator);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("fdiv_native", (&boxed<FdivArguments, FdivResults, &fdiv>));
  m.impl("fdiv_weight_native", (&boxed<FdivWeightArguments, WeightResults, &fdiv_weight>));
}
