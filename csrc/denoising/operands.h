// The arguments of the op denoising as a struct, and the raw operands made from them.
#pragma once

#include "denoising/arguments.h"
#include "denoising/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct DenoisingArguments {
  FDK_ARGUMENTS(FDK_DENOISING_ARGUMENTS)
};

// Without its gradient's memory.
inline Denoising denoising_of(const DenoisingArguments& call) {
  const Tensor& pred = call.pred;
  expect(pred.dim() > 0, "pred: expected shape (B, ...)");
  Denoising p{};
  p.batch = pred.size(0);
  p.elements = elements_per_sample(pred);
  expect(p.batch > 0 && p.elements > 0, "pred: expected at least one sample and one element a sample");
  p.pred = samples_of(pred, pred, "pred");
  p.x0 = samples_of(call.x0, pred, "x0");
  p.noise = samples_of(call.noise, pred, "noise");
  expect(find_name(kPredictionNames, call.prediction.c_str(), &p.prediction), "prediction: unknown kind '",
         call.prediction, "'");
  p.alpha = table_of(call.alpha, pred, p.elements, false, "alpha", call.fixed_alpha);
  p.sigma = table_of(call.sigma, pred, p.elements, false, "sigma", call.fixed_sigma);
  p.sigma_data = call.sigma_data;
  p.weight = table_of(call.weight, pred, p.elements, false, "weight");
  expect(find_name(kReductionNames, call.reduction.c_str(), &p.reduction), "reduction: unknown '", call.reduction, "'");
  check_count(call.divisor, p.reduction, pred);
  return p;
}

}  // namespace fdkernels::ops
