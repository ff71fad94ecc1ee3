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
  set_choice(kDivergenceNames, call.divergence, "divergence", &options.divergence);
  expect(call.log_ratio_min <= call.log_ratio_max, "log_ratio_min: expected at most log_ratio_max");
  return options;
}

// A call's Problem, without its weights and its gradient's memory.
inline Problem problem(const FdivArguments& call) {
  const Tensor& student = call.student;
  Problem p{};
  set_extent(student, "student", &p);
  p.student = samples_of(student, student, "student");
  p.teacher = samples_of(call.teacher, student, "teacher");
  p.fake = samples_of(call.fake, student, "fake");
  p.teacher_uncond = samples_of(call.teacher_uncond, student, "teacher_uncond");
  p.fake_uncond = samples_of(call.fake_uncond, student, "fake_uncond");
  p.noisy = samples_of(call.noisy, student, "noisy");
  p.guidance_scale = call.guidance_scale;
  p.fake_guidance_scale = call.fake_guidance_scale;
  set_choice(kPredictionNames, call.prediction, "prediction", &p.prediction);
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
  set_choice(kReductionNames, call.reduction, "reduction", &p.reduction);
  p.with_stats = call.with_stats;
  expect(!(call.logits && call.weight), "weight: expected without logits");
  check_count(call.divisor, p.reduction, student);
  return p;
}

// The tensors that the op returns, without those of the generator's term.
struct FdivTensors : LossResult, GradientResult {
  Tensor stats;  // of the call, then h of each sample; empty if they are not wanted

  explicit FdivTensors(const FdivArguments& call, const Problem& p)
      : LossResult(call.student, p.reduction),
        GradientResult(call.student, *this, call.with_grad),
        stats(new_tensor({call.with_stats ? kStats + batch : 0}, ScalarType::Double, call.student)) {}
};

// The generator's term of a call, and the tensors that it points into.
struct GeneratorTensors : GradientResult {
  Generator term{};
  Tensor logits;

  GeneratorTensors(const FdivArguments& call, const LossResult& out)
      : GradientResult(given_of(call), out, call.gan_logits && call.gan_grad), logits(call.student) {
    if (!call.gan_logits) return;
    const Tensor& given = *call.gan_logits;
    term.heads = heads_of(given, out.batch, "gan_logits");
    logits = given.is_contiguous() ? given : torch::stable::contiguous(given);
    term.logits = {logits.data_ptr(), dtype_of(given, "gan_logits"), term.heads};
    const double heads = static_cast<double>(term.heads), all = heads * static_cast<double>(out.batch);
    const double divisor = out.per_sample ? heads : call.reduction == "sum" ? 1 : all;
    term.scale = term.gradient_scale = call.gan_weight / divisor;
    term.mean = 1 / (call.reduction == "sum" ? 1 : all);
    term.drops = call.zero_nonfinite;
    term.gradient = data();
    term.unscale = unscale_data();
    if (!scaled) return;
    // Without the weight, which may be small. A slope is at most 1, so there is room for 2^15.
    const double power = float16_power(divisor) * 0x1p15;
    term.gradient_scale = power / divisor;
    term.unscale_value = static_cast<float>(call.gan_weight / power);
  }

 private:
  // The term's logits, or where there are none, what stands in for them.
  static const Tensor& given_of(const FdivArguments& call) {
    if (!call.gan_logits) return call.student;
    expect(same_device(*call.gan_logits, call.student), "gan_logits: expected student's device");
    return *call.gan_logits;
  }
};

inline FdivResults results_of(const FdivTensors& out, const GeneratorTensors& generator) {
  return {out.loss, out.gradient, out.unscale, generator.gradient, generator.unscale, out.stats};
}

}  // namespace fdkernels::ops
