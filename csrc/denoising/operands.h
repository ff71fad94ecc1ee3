// The arguments of the op denoising as a struct, and the raw operands made from them.
#pragma once

#include "denoising/arguments.h"
#include "denoising/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct DenoisingArguments {
  FDK_ARGUMENTS(FDK_DENOISING_ARGUMENTS)
};

using DenoisingResults = std::tuple<Tensor, Tensor, Tensor>;  // loss, gradient, unscale

// Without its gradient's memory.
inline Denoising denoising_of(const DenoisingArguments& call) {
  const Tensor& pred = call.pred;
  Denoising p{};
  set_extent(pred, "pred", &p);
  p.pred = samples_of(pred, pred, "pred");
  p.x0 = samples_of(call.x0, pred, "x0");
  p.noise = samples_of(call.noise, pred, "noise");
  set_choice(kPredictionNames, call.prediction, "prediction", &p.prediction);
  p.alpha = table_of(call.alpha, pred, p.elements, false, "alpha", call.fixed_alpha);
  p.sigma = table_of(call.sigma, pred, p.elements, false, "sigma", call.fixed_sigma);
  p.sigma_data = call.sigma_data;
  p.weight = table_of(call.weight, pred, p.elements, false, "weight");
  set_choice(kReductionNames, call.reduction, "reduction", &p.reduction);
  check_count(call.divisor, p.reduction, pred);
  return p;
}

}  // namespace fdkernels::ops
