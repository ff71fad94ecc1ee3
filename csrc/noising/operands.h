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
  Noising p{};
  set_extent(x, "x", &p);
  p.x = samples_of(x, x, "x");
  p.noise = samples_of(call.noise, x, "noise");
  p.seed = seed_of(call.seed, x);
  set_choice(kNoisingResultNames, call.result, "result", &p.result);
  set_choice(kPredictionNames, call.prediction, "prediction", &p.prediction);
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
