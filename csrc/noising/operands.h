// The arguments of the op noising as a struct, and the raw operands made from them.
#pragma once

#include "noising/arguments.h"
#include "noising/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct NoisingArguments {
  FDK_ARGUMENTS(FDK_NOISING_ARGUMENTS)
};

// Of a call. y and drawn are its results; drawn is empty if the call does not ask for it.
struct NoisingResults {
  Tensor y, drawn;

  explicit NoisingResults(const NoisingArguments& call)
      : y(new_tensor(call.x.sizes(), call.x.scalar_type(), call.x)),
        drawn(new_tensor(call.with_noise ? call.x.sizes() : Sizes({0}), call.x.scalar_type(), call.x)) {}

  std::tuple<Tensor, Tensor> all() const {
    return {y, drawn};
  }
};

inline Noising noising_of(const NoisingArguments& call, const NoisingResults& results) {
  const Tensor& x = call.x;
  expect(x.dim() > 0, "x: expected shape (B, ...)");
  Noising p{};
  p.batch = x.size(0);
  p.elements = elements_per_sample(x);
  expect(p.batch > 0 && p.elements > 0, "x: expected at least one sample and one element a sample");
  p.x = samples_of(x, x, "x");
  p.noise = samples_of(call.noise, x, "noise");
  p.seed = seed_of(call.seed, x);
  expect(find_name(kNoisingResultNames, call.result.c_str(), &p.result), "result: unknown '", call.result, "'");
  expect(find_name(kPredictionNames, call.prediction.c_str(), &p.prediction), "prediction: unknown kind '",
         call.prediction, "'");
  p.alpha = table_of(call.alpha, x, p.elements, false, "alpha", call.fixed_alpha);
  p.sigma = table_of(call.sigma, x, p.elements, false, "sigma", call.fixed_sigma);
  p.sigma_data = call.sigma_data;
  expect(!(call.noise && call.seed), "seed: expected without noise");
  expect(call.seed || !call.with_noise, "with_noise: expected beside a seed");
  p.y = results.y.data_ptr();
  p.drawn = call.with_noise ? results.drawn.data_ptr() : nullptr;
  return p;
}

}  // namespace fdkernels::ops
