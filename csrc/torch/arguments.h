// The arguments of the ops of fdkernels/fdiv/ops.py, for the op libraries of every device. Python has validated a
// public call; what is checked here keeps a direct call of a raw op from reading past a tensor.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "fdkernels/fdiv.h"

// libtorch's, outside the stable ABI: null where a later torch has it no longer, and the call is then a forward.
namespace torch::autograd {
__attribute__((weak, visibility("default"))) int get_current_graph_task_id();
}

namespace fdkernels::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string said(const std::string& text) {
  return text;
}

template <class Number>
  requires std::is_arithmetic_v<Number>
std::string said(Number number) {
  return std::to_string(number);
}

// Without a stream: where a toolchain links the C++ runtime into this library, and the process has another one, a
// stream of the one uses locales of the other, and crashes. STD_TORCH_CHECK uses one.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw std::runtime_error((said(parts) + ...));
}

template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (!condition) refuse(parts...);
}

struct RatioArguments {
  OptionalTensor mean, edges;
  double t_min, t_max, decay;
  bool update;
};

struct OptionArguments {
  std::string divergence;
  double alpha, log_ratio_min, log_ratio_max;
  bool normalize_weight;
};

struct WeightArguments {
  Tensor logits;
  OptionalTensor t;
  RatioArguments ratio;
  OptionArguments options;
};

struct FdivArguments {
  Tensor student, teacher, fake;
  OptionalTensor teacher_uncond, fake_uncond;
  double guidance_scale, fake_guidance_scale;
  OptionalTensor noisy, a, c;
  int64_t coefficient_inner;
  OptionalTensor logits, t, weight;
  RatioArguments ratio;
  OptionArguments options;
  bool dmd_scale;
  double eps;
  OptionalTensor scale;
  int64_t scale_inner;
  OptionalTensor mask;
  int64_t mask_inner;
  bool zero_nonfinite;
  std::string reduction;
  bool with_grad, with_stats;
  OptionalTensor divisor;
};

using WeightResults = std::tuple<Tensor, Tensor>;                // h, figures
using FdivResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, gradient, unscale, figures

// The floats of `numbers`, in the order of fdkernels/floats.py, put where the call has its own.
inline void take_numbers(const Tensor& numbers, const std::vector<std::pair<const char*, double*>>& floats) {
  expect(numbers.is_cpu() && numbers.dim() == 1 && numbers.size(0) == static_cast<int64_t>(floats.size()) &&
             numbers.is_contiguous() && numbers.scalar_type() == ScalarType::Double,
         "numbers: expected ", floats.size(), " contiguous float64 values on the CPU");
  const double* values = static_cast<const double*>(numbers.data_ptr());
  for (const auto& [name, to] : floats) {
    // No one could check a number before that a graph computed.
    expect(std::isfinite(*values), name, ": expected a finite number, got ", *values);
    *to = *values++;
  }
}

inline std::vector<std::pair<const char*, double*>> floats_of(RatioArguments& ratio, OptionArguments& options) {
  return {{"t_min", &ratio.t_min},
          {"t_max", &ratio.t_max},
          {"decay", &ratio.decay},
          {"alpha", &options.alpha},
          {"log_ratio_min", &options.log_ratio_min},
          {"log_ratio_max", &options.log_ratio_max}};
}

// The schemas' signatures, once for every device: TORCH_BOX((&fdiv_op<&run>)).
template <WeightResults (*kRun)(const WeightArguments&)>
WeightResults fdiv_weight_op(Tensor logits, OptionalTensor t, OptionalTensor ratio_mean, OptionalTensor edges,
                             double t_min, double t_max, double decay, bool update, std::string divergence,
                             double alpha, double log_ratio_min, double log_ratio_max, bool normalize_weight,
                             OptionalTensor numbers) {
  WeightArguments call{logits,
                       t,
                       {ratio_mean, edges, t_min, t_max, decay, update},
                       {divergence, alpha, log_ratio_min, log_ratio_max, normalize_weight}};
  if (numbers) take_numbers(*numbers, floats_of(call.ratio, call.options));
  return kRun(call);
}

template <FdivResults (*kRun)(const FdivArguments&)>
FdivResults fdiv_op(Tensor student, Tensor teacher, Tensor fake, OptionalTensor teacher_uncond,
                    OptionalTensor fake_uncond, double guidance_scale, double fake_guidance_scale, OptionalTensor noisy,
                    OptionalTensor a, OptionalTensor c, int64_t coefficient_inner, OptionalTensor logits,
                    OptionalTensor t, OptionalTensor weight, OptionalTensor ratio_mean, OptionalTensor edges,
                    double t_min, double t_max, double decay, bool update, std::string divergence, double alpha,
                    double log_ratio_min, double log_ratio_max, bool normalize_weight, bool dmd_scale, double eps,
                    OptionalTensor scale, int64_t scale_inner, OptionalTensor mask, int64_t mask_inner,
                    bool zero_nonfinite, std::string reduction, bool with_grad, bool with_stats, OptionalTensor divisor,
                    OptionalTensor numbers) {
  FdivArguments call{student,
                     teacher,
                     fake,
                     teacher_uncond,
                     fake_uncond,
                     guidance_scale,
                     fake_guidance_scale,
                     noisy,
                     a,
                     c,
                     coefficient_inner,
                     logits,
                     t,
                     weight,
                     {ratio_mean, edges, t_min, t_max, decay, update},
                     {divergence, alpha, log_ratio_min, log_ratio_max, normalize_weight},
                     dmd_scale,
                     eps,
                     scale,
                     scale_inner,
                     mask,
                     mask_inner,
                     zero_nonfinite,
                     reduction,
                     with_grad,
                     with_stats,
                     divisor};
  if (numbers) {
    auto floats = floats_of(call.ratio, call.options);
    floats.insert(floats.end(), {{"guidance_scale", &call.guidance_scale},
                                 {"fake_guidance_scale", &call.fake_guidance_scale},
                                 {"eps", &call.eps}});
    take_numbers(*numbers, floats);
  }
  return kRun(call);
}

inline bool same_device(const Tensor& tensor, const Tensor& other) {
  return tensor.device() == other.device();
}

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      refuse(name, ": expected a floating dtype");
  }
}

inline int64_t elements_per_sample(const Tensor& tensor) {
  int64_t elements = 1;
  for (int64_t d = 1; d < tensor.dim(); ++d) elements *= tensor.size(d);
  return elements;
}

inline Images images(const Tensor& tensor, const Tensor& student, const char* name) {
  expect(same_device(tensor, student), name, ": expected student's device");
  expect(tensor.dim() == student.dim(), name, ": expected the rank of student");
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    expect(tensor.size(d) == student.size(d), name, ": expected the shape of student");
    expect(d == 0 || tensor.size(d) == 1 || tensor.stride(d) == expected, name, ": expected dense samples");
    if (d > 0) expected *= tensor.size(d);
  }
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0)};
}

inline Images images(const OptionalTensor& tensor, const Tensor& student, const char* name) {
  return tensor ? images(*tensor, student, name) : Images{};
}

inline Table table(const OptionalTensor& tensor, int64_t inner, const Tensor& student, int64_t elements, bool is_mask,
                   const char* name) {
  if (!tensor) return {};
  expect(same_device(*tensor, student) && tensor->dim() == 2, name,
         ": expected a (B or 1, R) tensor on student's device");
  const int64_t rows = tensor->size(0), entries = tensor->size(1);
  expect(rows == student.size(0) || rows == 1, name, ": expected one row, or one per sample");
  expect(entries == 1 || tensor->stride(1) == 1, name, ": expected dense rows");
  expect(
      inner > 0 && inner <= elements && entries > 0 && entries <= elements / inner && elements % (entries * inner) == 0,
      name, ": entries and their runs do not tile a sample");
  const ScalarType dtype = tensor->scalar_type();
  expect(is_mask ? dtype == ScalarType::Bool : (dtype == ScalarType::Float || dtype == ScalarType::Double), name,
         is_mask ? ": expected bool" : ": expected float32 or float64");
  const DType stored = dtype == ScalarType::Double ? DType::f64 : DType::f32;
  return {tensor->data_ptr(), stored, rows == 1 ? 0 : tensor->stride(0), entries, inner};
}

// Whether autograd is running in this thread: a forward is then the second one of an activation checkpoint, which must
// not update the normalizer again (fdkernels/fdiv/weight.py, inside_backward).
inline bool inside_backward() {
  return torch::autograd::get_current_graph_task_id != nullptr && torch::autograd::get_current_graph_task_id() != -1;
}

inline RatioState ratio_state(const RatioArguments& ratio, const Tensor& like, bool has_t) {
  if (!ratio.mean) {
    expect(!ratio.edges, "edges: expected beside ratio_mean");
    return {nullptr, 0, nullptr, 0, 1, 0, false};
  }
  const Tensor& mean = *ratio.mean;
  expect(has_t, "t: expected beside ratio_mean");
  expect(same_device(mean, like) && mean.dim() == 1 && mean.size(0) > 0 && mean.is_contiguous() &&
             mean.scalar_type() == ScalarType::Float,
         "ratio_mean: expected a contiguous float32 (bins,) tensor on the others' device");
  const double* edges = nullptr;
  if (ratio.edges) {
    expect(same_device(*ratio.edges, like) && ratio.edges->dim() == 1 && ratio.edges->size(0) == mean.size(0) - 1 &&
               ratio.edges->is_contiguous() && ratio.edges->scalar_type() == ScalarType::Double,
           "edges: expected a contiguous float64 (bins - 1,) tensor on the others' device");
    // Not null for a single bin, whose edges are empty; nothing reads them then.
    edges = mean.size(0) > 1 ? static_cast<const double*>(ratio.edges->data_ptr())
                             : reinterpret_cast<const double*>(mean.data_ptr());
  }
  const bool update = ratio.update && !inside_backward();
  return {static_cast<float*>(mean.data_ptr()), mean.size(0), edges, ratio.t_min, ratio.t_max, ratio.decay, update};
}

inline WeightOptions weight_options(const OptionArguments& given) {
  WeightOptions options{Divergence::rkl, given.alpha, given.log_ratio_min, given.log_ratio_max, given.normalize_weight};
  expect(find_divergence(given.divergence.c_str(), &options.divergence), "divergence: unknown name '", given.divergence,
         "'");
  expect(given.log_ratio_min <= given.log_ratio_max, "log_ratio_min: expected at most log_ratio_max");
  return options;
}

// (B,) or (B, heads) of the batch; how many heads.
inline int64_t heads_of(const Tensor& logits, int64_t batch) {
  expect((logits.dim() == 1 || logits.dim() == 2) && logits.size(0) == batch,
         "logits: expected shape (B,) or (B, heads)");
  const int64_t heads = logits.dim() == 2 ? logits.size(1) : 1;
  expect(heads > 0, "logits: expected at least one head");
  return heads;
}

// A real (B,) or () tensor in double.
inline std::vector<double> to_double(const Tensor& tensor, int64_t count, const char* name) {
  expect(tensor.is_cpu() && tensor.dim() <= 1 && tensor.numel() == count, name,
         ": expected a CPU tensor with one value per sample");
  const ScalarType dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float && tensor.is_contiguous()) {
    const float* data = static_cast<const float*>(tensor.data_ptr());
    return std::vector<double>(data, data + count);
  }
  const Tensor wide = torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Double));
  const double* data = static_cast<const double*>(wide.data_ptr());
  return std::vector<double>(data, data + count);
}

// All of a call but its weights and its gradient's memory.
inline Problem problem(const FdivArguments& call) {
  const Tensor& student = call.student;
  expect(student.dim() > 0, "student: expected shape (B, ...)");
  Problem p{};
  p.batch = student.size(0);
  p.elements = elements_per_sample(student);
  expect(p.elements > 0, "student: expected at least one element a sample");
  p.student = images(student, student, "student");
  p.teacher = images(call.teacher, student, "teacher");
  p.fake = images(call.fake, student, "fake");
  p.teacher_uncond = images(call.teacher_uncond, student, "teacher_uncond");
  p.fake_uncond = images(call.fake_uncond, student, "fake_uncond");
  p.noisy = images(call.noisy, student, "noisy");
  p.guidance_scale = call.guidance_scale;
  p.fake_guidance_scale = call.fake_guidance_scale;
  expect(call.a.has_value() == call.c.has_value() && (!call.noisy || call.c),
         "a, c: expected together, and beside noisy");
  expect(!call.a || (call.a->dim() == 2 && call.c->dim() == 2 && call.a->size(1) == call.c->size(1)),
         "a, c: expected as many entries");
  p.a = table(call.a, call.coefficient_inner, student, p.elements, false, "a");
  p.c = table(call.c, call.coefficient_inner, student, p.elements, false, "c");
  p.scale = table(call.scale, call.scale_inner, student, p.elements, false, "scale");
  p.mask = table(call.mask, call.mask_inner, student, p.elements, true, "mask");
  p.dmd_scale = call.dmd_scale;
  p.eps = call.eps;
  p.zero_nonfinite = call.zero_nonfinite;
  expect(call.reduction == "mean" || call.reduction == "sum" || call.reduction == "none", "reduction: unknown '",
         call.reduction, "'");
  p.reduction = call.reduction == "mean" ? Reduction::mean : call.reduction == "sum" ? Reduction::sum : Reduction::none;
  p.with_stats = call.with_stats;
  for (const auto* input : {&p.student, &p.teacher, &p.fake, &p.teacher_uncond, &p.fake_uncond, &p.noisy}) {
    p.wide = p.wide || (input->data != nullptr && input->dtype == DType::f64);
  }
  expect(!(call.logits && call.weight), "weight: expected without logits");
  if (call.divisor) {
    expect(p.reduction == Reduction::mean && call.divisor->numel() == 1,
           "divisor: expected one value, with reduction mean");
    expect(call.divisor->is_cpu() || same_device(*call.divisor, student),
           "divisor: expected student's device or the CPU");
  }
  return p;
}

// N of a mean that the host knows, at least 1; 0 where the call gives none, or gives it on a device.
inline double host_divisor(const FdivArguments& call) {
  if (!call.divisor || !call.divisor->is_cpu()) return 0;
  const double divisor = to_double(*call.divisor, 1, "divisor")[0];
  return divisor < 1 ? 1 : divisor;
}

// A new contiguous tensor. The C shim costs a fraction of torch::stable::empty, which goes through the dispatcher.
inline Tensor new_tensor(Sizes sizes, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes[d + 1];
  AtenTensorHandle handle;
  const bool cpu = like.is_cpu();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides.data(), static_cast<int32_t>(dtype),
      cpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), cpu ? 0 : like.get_device_index(), &handle));
  return Tensor(handle);
}

struct Outputs {
  bool per_sample, is_double, scaled;  // "none"; a double loss; a float16 gradient
  Tensor loss, gradient, unscale, stats;

  explicit Outputs(const FdivArguments& call)
      : per_sample(call.reduction == "none"),
        is_double(call.student.scalar_type() == ScalarType::Double),
        scaled(call.with_grad && call.student.scalar_type() == ScalarType::Half) {
    const Tensor& like = call.student;
    const int64_t batch = like.size(0), zero = 0;
    const Sizes loss_shape(&batch, per_sample ? 1 : 0), none(&zero, 1);
    loss = new_tensor(loss_shape, is_double ? ScalarType::Double : ScalarType::Float, like);
    gradient = new_tensor(call.with_grad ? like.sizes() : none, like.scalar_type(), like);
    unscale = new_tensor(scaled ? loss_shape : none, ScalarType::Float, like);
    stats = new_tensor({call.with_stats ? kStats + like.size(0) : 0}, ScalarType::Double, like);
  }

  FdivResults results() const {
    return {loss, gradient, unscale, stats};
  }
};

// The backwards, around what scales a gradient into another tensor, or into itself.
using ScaleInto = void(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out);

template <ScaleInto* kScale>
Tensor fdiv_backward_op(Tensor gradient, Tensor upstream, Tensor unscale) {
  Tensor out = new_tensor(gradient.sizes(), gradient.scalar_type(), gradient);
  kScale(gradient, upstream, unscale, out);
  return out;
}

template <ScaleInto* kScale>
void fdiv_backward_in_place_op(Tensor gradient, Tensor upstream, Tensor unscale) {
  kScale(gradient, upstream, unscale, gradient);
}

// A backward's operands: whether upstream has a value for each sample, after the shapes have been checked.
inline bool is_per_sample(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out) {
  expect(gradient.dim() > 0 && gradient.is_contiguous() && out.is_contiguous(),
         "gradient: expected a contiguous tensor");
  const bool per_sample = upstream.dim() == 1;
  const int64_t count = per_sample ? gradient.size(0) : 1;
  expect(upstream.dim() <= 1 && upstream.numel() == count, "upstream: expected () or (B,)");
  expect(unscale.numel() == 0 || unscale.numel() == count, "unscale: expected upstream's shape, or none");
  expect(same_device(upstream, gradient), "upstream: expected gradient's device");
  expect(same_device(unscale, gradient), "unscale: expected gradient's device");
  return per_sample;
}

}  // namespace fdkernels::ops
