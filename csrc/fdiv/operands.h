// The arguments of the ops fdiv and fdiv_weight as structs, and the raw operands made from them.
#pragma once

#include "fdiv/arguments.h"
#include "fdiv/generator.h"
#include "fdiv/problem.h"
#include "fdiv/weight.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct FdivWeightArguments {
  FDK_ARGUMENTS(FDK_FDIV_WEIGHT_ARGUMENTS)
};

struct FdivArguments {
  FDK_ARGUMENTS(FDK_FDIV_ARGUMENTS)
};

using WeightResults = std::tuple<Tensor, Tensor>;  // h, statistics
// loss, gradient, unscale, the generator's term's gradient and unscale, statistics
using FdivResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// From either op's arguments.
template <class Arguments>
RatioState ratio_state(const Arguments& call, const Tensor& like) {
  if (!call.ratio_mean) {
    expect(!call.edges, "edges: expected beside ratio_mean");
    return {nullptr, 0, nullptr, 0, 1, 0, false};
  }
  const Tensor& mean = *call.ratio_mean;
  expect(call.t.has_value(), "t: expected beside ratio_mean");
  expect(same_device(mean, like) && mean.dim() == 1 && mean.size(0) > 0 && mean.is_contiguous() &&
             mean.scalar_type() == ScalarType::Float,
         "ratio_mean: expected a contiguous float32 (bins,) tensor on the others' device");
  const double* edges = nullptr;
  if (call.edges) {
    expect(same_device(*call.edges, like) && call.edges->dim() == 1 && call.edges->size(0) == mean.size(0) - 1 &&
               call.edges->is_contiguous() && call.edges->scalar_type() == ScalarType::Double,
           "edges: expected a contiguous float64 (bins - 1,) tensor on the others' device");
    // A single bin has no edges. Nothing reads the pointer then, but null would mean uniform bins.
    edges = mean.size(0) > 1 ? static_cast<const double*>(call.edges->data_ptr())
                             : reinterpret_cast<const double*>(mean.data_ptr());
  }
  const bool update = call.update && !inside_backward();
  return {static_cast<float*>(mean.data_ptr()), mean.size(0), edges, call.t_min, call.t_max, call.decay, update};
}

template <class Arguments>
WeightOptions weight_options(const Arguments& call) {
  WeightOptions options{Divergence::rkl, call.amari_alpha, call.log_ratio_min, call.log_ratio_max,
                        call.normalize_weight};
  expect(find_name(kDivergenceNames, call.divergence.c_str(), &options.divergence), "divergence: unknown name '",
         call.divergence, "'");
  expect(call.log_ratio_min <= call.log_ratio_max, "log_ratio_min: expected at most log_ratio_max");
  return options;
}

// A call's Problem, without its weights and its gradient's memory.
inline Problem problem(const FdivArguments& call) {
  const Tensor& student = call.student;
  expect(student.dim() > 0, "student: expected shape (B, ...)");
  Problem p{};
  p.batch = student.size(0);
  p.elements = elements_per_sample(student);
  expect(p.elements > 0, "student: expected at least one element a sample");
  p.student = samples_of(student, student, "student");
  p.teacher = samples_of(call.teacher, student, "teacher");
  p.fake = samples_of(call.fake, student, "fake");
  p.teacher_uncond = samples_of(call.teacher_uncond, student, "teacher_uncond");
  p.fake_uncond = samples_of(call.fake_uncond, student, "fake_uncond");
  p.noisy = samples_of(call.noisy, student, "noisy");
  p.guidance_scale = call.guidance_scale;
  p.fake_guidance_scale = call.fake_guidance_scale;
  expect(find_name(kPredictionNames, call.prediction.c_str(), &p.prediction), "prediction: unknown kind '",
         call.prediction, "'");
  p.alpha = table_of(call.alpha, student, p.elements, false, "alpha", call.fixed_alpha);
  p.sigma = table_of(call.sigma, student, p.elements, false, "sigma", call.fixed_sigma);
  p.sigma_data = call.sigma_data;
  p.multiplier = table_of(call.multiplier, student, p.elements, false, "multiplier");
  p.mask = table_of(call.mask, student, p.elements, true, "mask");
  p.dmd_scale = call.dmd_scale;
  p.eps = call.eps;
  p.floor = call.floor;
  p.kept_only = call.kept_only && call.mask.entries.has_value();
  p.zero_nonfinite = call.zero_nonfinite;
  expect(find_name(kReductionNames, call.reduction.c_str(), &p.reduction), "reduction: unknown '", call.reduction, "'");
  p.with_stats = call.with_stats;
  expect(!(call.logits && call.weight), "weight: expected without logits");
  check_count(call.divisor, p.reduction, student);
  return p;
}

// The generator's term of a call, and the tensors that it points into.
struct GeneratorTensors {
  Generator term{};
  Tensor logits, gradient, unscale;

  GeneratorTensors(const FdivArguments& call, const LossResults& out)
      : logits(call.student), gradient(new_tensor({0}, call.student.scalar_type(), call.student)), unscale(none(call)) {
    if (!call.gan_logits) return;
    const Tensor& given = *call.gan_logits;
    expect(same_device(given, call.student), "gan_logits: expected student's device");
    term.heads = heads_of(given, call.student.size(0), "gan_logits");
    logits = given.is_contiguous() ? given : torch::stable::contiguous(given);
    term.logits = {logits.data_ptr(), dtype_of(given, "gan_logits"), term.heads};
    const double heads = static_cast<double>(term.heads), batch = static_cast<double>(given.size(0));
    const bool sum = call.reduction == "sum" || batch == 0;
    const double divisor = out.per_sample ? heads : sum ? 1 : heads * batch;
    term.scale = term.gradient_scale = call.gan_weight / divisor;
    term.mean = 1 / (out.per_sample ? divisor * batch : divisor);
    term.drops = call.zero_nonfinite;
    gradient = new_tensor(call.gan_grad ? given.sizes() : Sizes(&kNone, 1), given.scalar_type(), given);
    if (!call.gan_grad) return;
    term.gradient = gradient.data_ptr();
    if (term.logits.dtype != DType::f16) return;
    // Without the weight, which may be small. A slope is at most 1, so there is room for 2^15.
    const double power = float16_power(divisor) * 0x1p15;
    term.gradient_scale = power / divisor;
    term.unscale_value = static_cast<float>(call.gan_weight / power);
    unscale = new_tensor(out.loss.sizes(), ScalarType::Float, given);
    term.unscale = static_cast<float*>(unscale.data_ptr());
  }

 private:
  static constexpr int64_t kNone = 0;
  static Tensor none(const FdivArguments& call) {
    return new_tensor({0}, ScalarType::Float, call.student);
  }
};

}  // namespace fdkernels::ops
