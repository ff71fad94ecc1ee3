// The ops of fdkernels/fdiv/ops.py on CUDA tensors, registered through libtorch's stable ABI: from tensors to a plan
// and its launches. Nothing here reads a tensor's values or waits for the device.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "arguments.h"
#include "cuda/device.h"

namespace {

using namespace fdkernels::ops;
namespace cuda = fdkernels::cuda;
using cuda::Call;
using fdkernels::DType;
using fdkernels::Images;
using fdkernels::Loads;
using fdkernels::Problem;

// The device of a call, current while this lives, and its current stream.
struct Target {
  Target(const Tensor& like, const char* name) : device(index_of(like, name)), guard(device) {
    cuda::set_device(device);
    stream = cuda::current_stream(device);
    limits = &cuda::limits(device);  // a first call loads every kernel, also where it is captured
  }

  // The dispatcher sends a call here for any of its tensors.
  static int index_of(const Tensor& tensor, const char* name) {
    expect(tensor.is_cuda(), name, ": expected a CUDA tensor");
    return tensor.get_device_index();
  }

  int device;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
  const fdkernels::DeviceLimits* limits = nullptr;
};

// Dense values of a type that kernels read. A tensor that had to be converted lives until its memory may be reused on
// this stream, which is after the launches that read it.
struct RealValues {
  Tensor tensor;
  cuda::Reals reals;
};

std::optional<cuda::RealType> real_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return cuda::RealType::f32;
    case ScalarType::Double:
      return cuda::RealType::f64;
    case ScalarType::BFloat16:
      return cuda::RealType::bf16;
    case ScalarType::Half:
      return cuda::RealType::f16;
    case ScalarType::Long:
      return cuda::RealType::i64;
    case ScalarType::Int:
      return cuda::RealType::i32;
    case ScalarType::Short:
      return cuda::RealType::i16;
    case ScalarType::Char:
      return cuda::RealType::i8;
    case ScalarType::Byte:
      return cuda::RealType::u8;
    default:
      return std::nullopt;
  }
}

RealValues real_values(const Tensor& given, const Tensor& like, int64_t count, const char* name) {
  expect(same_device(given, like) && given.numel() == count, name, ": expected ", count,
         " values on the others' device");
  const bool readable = real_type(given.scalar_type()).has_value();
  Tensor dense = readable ? given : torch::stable::to(given, ScalarType::Double);
  if (!dense.is_contiguous()) dense = torch::stable::contiguous(dense);
  return {dense, {dense.data_ptr(), *real_type(dense.scalar_type())}};
}

// One value a sample.
RealValues per_sample(const OptionalTensor& given, const Tensor& like, int64_t batch, const char* name) {
  if (!given) return {like, {}};
  expect(given->dim() == 1, name, ": expected shape (B,)");
  return real_values(*given, like, batch, name);
}

// Doubles on the device, handed out in pieces of 16-byte alignment.
class Workspace {
 public:
  Workspace(int64_t doubles, const Tensor& like) : tensor_(new_tensor({doubles}, ScalarType::Double, like)) {
    next_ = static_cast<double*>(tensor_.data_ptr());
  }

  static int64_t padded(int64_t doubles) {
    return (doubles + 1) / 2 * 2;
  }

  double* take(int64_t doubles) {
    double* taken = next_;
    next_ += padded(doubles);
    return taken;
  }

 private:
  Tensor tensor_;
  double* next_;
};

// ---- which kernel, and which plan

// Whether every vector of every N-sized tensor is aligned to its size.
bool is_aligned(const Problem& p, int vector) {
  const auto fits = [&](const Images& images) {
    if (images.data == nullptr) return true;
    const int64_t bytes = static_cast<int64_t>(vector) * fdkernels::size_of(images.dtype);
    return reinterpret_cast<uintptr_t>(images.data) % static_cast<uintptr_t>(bytes) == 0 &&
           (p.batch == 1 || images.batch_stride % vector == 0);
  };
  return fits(p.student) && fits(p.teacher) && fits(p.fake) && fits(p.teacher_uncond) && fits(p.fake_uncond) &&
         fits(p.noisy) && fits({p.gradient, p.student.dtype, p.elements});
}

// FDKERNELS_CUDA_PLAN narrows the schedules, for tests and experiments.
fdkernels::Allowed allowed() {
  const char* text = std::getenv("FDKERNELS_CUDA_PLAN");
  fdkernels::Allowed allowed;
  expect(fdkernels::parse_allowed(text == nullptr ? "" : text, &allowed), "FDKERNELS_CUDA_PLAN: expected ",
         fdkernels::kAllowed, ", got '", text, "'");
  return allowed;
}

// Multiprocessors count a mask in so many parts.
int mask_parts(const Target& target) {
  return 2 * target.limits->multiprocessors;
}

// Doubles that a plan's launches need.
int64_t workspace_of(const Call& call, const fdkernels::Plan& plan, const Target& target) {
  const int64_t batch = call.p.batch;
  int64_t doubles = Workspace::padded(cuda::kRecorded * batch);
  if (plan.schedule == fdkernels::Schedule::grid) doubles += Workspace::padded(cuda::kExchanged * batch * plan.team);
  if (plan.weigh_first) {
    doubles += Workspace::padded(batch) + Workspace::padded(cuda::weigh_scratch(batch, call.w.state.bins));
  }
  if (plan.count_first) doubles += Workspace::padded(mask_parts(target));
  return doubles;
}

// The launches that a plan has come first. Another plan of this call finds them done.
void queue_first(Call& call, fdkernels::CallShape& shape, const fdkernels::Plan& plan, const Target& target,
                 Workspace& workspace) {
  const Problem& p = call.p;
  cuda::Results& r = call.r;
  r.records = workspace.take(cuda::kRecorded * p.batch);
  if (plan.schedule == fdkernels::Schedule::grid) r.exchange = workspace.take(cuda::kExchanged * p.batch * plan.team);
  if (plan.weigh_first) {
    double* h = r.stats != nullptr ? r.stats + fdkernels::kStats : workspace.take(p.batch);
    double* scratch = workspace.take(cuda::weigh_scratch(p.batch, call.w.state.bins));
    cuda::launch_weigh(call.w, p.batch, h, r.stats, scratch, target.stream);
    call.w = {};
    call.w.given = {h, cuda::RealType::f64};
    r.weight_stats = false;
    shape.heads = shape.bins = 0;
  }
  if (plan.count_first) {
    call.count_parts = mask_parts(target);
    double* counts = workspace.take(call.count_parts);
    cuda::launch_count(p.mask, p.mask.batch_stride == 0 ? 1 : p.batch, counts, call.count_parts, target.stream);
    call.counts = counts;
    shape.mask_entries = 0;
  }
}

// The plan's numbers, as kernels take them.
void follow(Call& call, const fdkernels::CallShape& shape, const fdkernels::Plan& plan) {
  const Problem& p = call.p;
  call.share = plan.share;
  call.held = plan.held;
  call.buffers = plan.buffers;
  call.teams = plan.teams;
  call.weighing = plan.weighing;
  call.held_bytes = plan.held_bytes(shape);
  call.prefetched = plan.prefetched;
  call.prefetched_inputs = 0;
  const bool reads_student = p.dmd_scale || p.with_stats;
  for (const Images* images : {&p.teacher, &p.fake, &p.teacher_uncond, &p.fake_uncond, &p.student, &p.noisy}) {
    const bool is_read = images->data != nullptr && (reads_student || (images != &p.student && images != &p.noisy));
    if (plan.prefetched > 0 && is_read) call.inputs[call.prefetched_inputs++] = *images;
  }
}

// Once a process.
void warn_of_refusal(int64_t blocks) {
  static const bool warned = [&] {
    const std::string text =
        "fdkernels: a cooperative launch of " + std::to_string(blocks) +
        " blocks, one a multiprocessor, was refused (a green context, a limit of MPS): calls go on with fewer blocks, "
        "more slowly, and lose time to the refusals. FDKERNELS_CUDA_PLAN=cluster does without such launches, where a "
        "cluster can hold a sample.";
    aoti_torch_warn("fdiv", __FILE__, __LINE__, text.c_str());
    return true;
  }();
  static_cast<void>(warned);
}

// ---- the ops

WeightResults fdiv_weight(const WeightArguments& call) {
  const Target target(call.logits, "logits");
  const int64_t batch = call.logits.dim() > 0 ? call.logits.size(0) : 0;
  cuda::Weighting w;
  w.heads = heads_of(call.logits, batch);
  const RealValues logits = real_values(call.logits, call.logits, batch * w.heads, "logits");
  const RealValues t = per_sample(call.t, call.logits, batch, "t");
  w.logits = logits.reals;
  w.t = t.reals;
  w.state = ratio_state(call.ratio, call.logits, call.t.has_value());
  w.options = weight_options(call.options);
  Tensor weight = new_tensor({batch}, ScalarType::Double, call.logits);
  Tensor stats = new_tensor({fdkernels::kWeightStats}, ScalarType::Double, call.logits);
  Workspace workspace(Workspace::padded(cuda::weigh_scratch(batch, w.state.bins)), call.logits);
  cuda::launch_weigh(w, batch, static_cast<double*>(weight.data_ptr()), static_cast<double*>(stats.data_ptr()),
                     workspace.take(cuda::weigh_scratch(batch, w.state.bins)), target.stream);
  return {weight, stats};
}

FdivResults fdiv(const FdivArguments& arguments) {
  const Target target(arguments.student, "student");
  const Tensor& like = arguments.student;
  Call call{};
  Problem& p = call.p = problem(arguments);
  cuda::Weighting& w = call.w;
  w.heads = arguments.logits ? heads_of(*arguments.logits, p.batch) : 1;
  const RealValues logits =
      arguments.logits ? real_values(*arguments.logits, like, p.batch * w.heads, "logits") : RealValues{like, {}};
  const RealValues t = per_sample(arguments.t, like, p.batch, "t");
  const RealValues given = per_sample(arguments.weight, like, p.batch, "weight");
  w.logits = logits.reals;
  w.t = t.reals;
  w.given = given.reals;
  w.state = ratio_state(arguments.ratio, like, arguments.t.has_value());
  w.options = weight_options(arguments.options);
  if (!arguments.logits) w.state = {};
  call.host_divisor = host_divisor(arguments);
  const bool reads_divisor = arguments.divisor && !arguments.divisor->is_cpu();
  const RealValues divisor = reads_divisor ? real_values(*arguments.divisor, like, 1, "divisor") : RealValues{like, {}};
  call.divisor = divisor.reals;

  const Outputs out(arguments);
  cuda::Results& r = call.r;
  r.loss = out.loss.data_ptr();
  r.wide_loss = out.is_double;
  r.unscale = out.scaled ? static_cast<float*>(out.unscale.data_ptr()) : nullptr;
  r.stats = arguments.with_stats ? static_cast<double*>(out.stats.data_ptr()) : nullptr;
  r.weight_stats = true;
  p.gradient = arguments.with_grad ? out.gradient.data_ptr() : nullptr;
  if (p.batch == 0) {
    cuda::launch_empty(r, p.reduction != fdkernels::Reduction::none, target.stream);
    return out.results();
  }

  const Loads loads = loads_of(p);
  const bool general = is_general(p, loads);
  p.aligned = is_aligned(p, vector_of(loads));
  fdkernels::CallShape shape = shape_of(p, loads, general, arguments.logits ? w.heads : 0, w.state.bins);
  if (arguments.divisor) shape.mask_entries = 0;  // nothing to count
  std::vector<Workspace> memory;  // alive until all is queued: what is freed earlier may be handed out again
  r.tickets = cuda::take_tickets(target.device, target.stream);
  if (r.tickets == nullptr) {
    double* zeros = memory.emplace_back(cuda::kTicket / 2, like).take(cuda::kTicket / 2);
    cuda::zero(zeros, cuda::kTicket * sizeof(unsigned), target.stream);
    r.tickets = reinterpret_cast<unsigned*>(zeros);
  }
  fdkernels::DeviceLimits limits = *target.limits;
  int64_t refused = 0;  // blocks
  for (;;) {
    const fdkernels::Plan plan = fdkernels::plan(shape, limits, allowed());
    queue_first(call, shape, plan, target, memory.emplace_back(workspace_of(call, plan, target), like));
    follow(call, shape, plan);
    if (cuda::start(call, plan, loads, general, target.device, target.stream)) {
      if (refused > 0) warn_of_refusal(refused);  // not before: torch loses an error that follows a warning
      return out.results();
    }
    limits.multiprocessors = static_cast<int>(plan.blocks()) / 2;
    refused = std::max(refused, plan.blocks());
    expect(limits.multiprocessors > 0,
           "fdkernels: no block of a cooperative grid can be resident here;"
           " FDKERNELS_CUDA_PLAN=cluster does without, where a cluster can hold a sample");
  }
}

// upstream * unscale * gradient, for the whole batch or per sample.
void scale_into(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out) {
  const Target target(gradient, "gradient");
  cuda::Scale scale{};
  const bool each = is_per_sample(gradient, upstream, unscale, out);
  if (gradient.numel() == 0) return;
  scale.runs = each ? gradient.size(0) : 1;
  scale.elements = gradient.numel() / scale.runs;
  scale.gradient = gradient.data_ptr();
  scale.out = out.data_ptr();
  scale.dtype = dtype_of(gradient, "gradient");
  // A stride of 0, as of loss.sum(), is read as it is.
  const auto type = real_type(upstream.scalar_type());
  expect(type.has_value(), "upstream: expected a real dtype");
  scale.upstream = {upstream.data_ptr(), *type};
  scale.upstream_stride = each ? upstream.stride(0) : 0;
  Tensor powers = unscale.scalar_type() == ScalarType::Float ? unscale : torch::stable::to(unscale, ScalarType::Float);
  if (!powers.is_contiguous()) powers = torch::stable::contiguous(powers);
  scale.unscale = powers.numel() > 0 ? static_cast<const float*>(powers.data_ptr()) : nullptr;
  scale.aligned = reinterpret_cast<uintptr_t>(scale.gradient) % 16 == 0 &&
                  reinterpret_cast<uintptr_t>(scale.out) % 16 == 0 &&
                  (scale.runs == 1 || scale.elements * fdkernels::size_of(scale.dtype) % 16 == 0);
  cuda::launch_scale(scale, target.limits->multiprocessors, target.stream);
}

// What plans are made for, in DeviceLimits' order.
Tensor cuda_limits(int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  cuda::set_device(static_cast<int>(device));
  const fdkernels::DeviceLimits& limits = cuda::limits(static_cast<int>(device));
  const int64_t count = 6 + fdkernels::kClusterSizes, one = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &count, &one, static_cast<int32_t>(ScalarType::Double),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor values(handle);
  double* to = static_cast<double*>(values.data_ptr());
  to[0] = limits.capability, to[1] = limits.multiprocessors;
  to[2] = static_cast<double>(limits.shared_per_block), to[3] = static_cast<double>(limits.shared_per_multiprocessor);
  to[4] = static_cast<double>(limits.cache), to[5] = limits.bandwidth;
  for (int i = 0; i < fdkernels::kClusterSizes; ++i) to[6 + i] = limits.active_clusters[i];
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CUDA, m) {
  m.impl("fdiv_native", TORCH_BOX((&fdiv_op<&fdiv>)));
  m.impl("fdiv_weight_native", TORCH_BOX((&fdiv_weight_op<&fdiv_weight>)));
  m.impl("fdiv_backward_native", TORCH_BOX(&fdiv_backward_op<&scale_into>));
  m.impl("fdiv_backward_native_", TORCH_BOX(&fdiv_backward_in_place_op<&scale_into>));
}

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_limits", TORCH_BOX(&cuda_limits));
}
