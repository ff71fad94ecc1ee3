// The ops fdiv and fdiv_weight on CPU tensors, registered through libtorch's stable ABI.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "adversarial/cpu/sums.h"
#include "fdiv/cpu/samples.h"
#include "fdiv/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;

template <class Logit>
void mean_of_heads(const Tensor& logits, int64_t heads, std::vector<double>& combined) {
  const Logit* data = static_cast<const Logit*>(logits.data_ptr());
  for (size_t b = 0; b < combined.size(); ++b) {
    double sum = 0;
    for (int64_t k = 0; k < heads; ++k) sum += static_cast<double>(data[static_cast<int64_t>(b) * heads + k]);
    combined[b] = sum / static_cast<double>(heads);
  }
}

// Each sample's log ratio: the mean over its heads.
std::vector<double> combine(const Tensor& logits, int64_t batch) {
  expect(logits.is_cpu(), "logits: expected a CPU tensor");
  const int64_t heads = heads_of(logits, batch);
  std::vector<double> combined(batch);
  if (logits.is_contiguous() && logits.scalar_type() == ScalarType::Float) {
    mean_of_heads<float>(logits, heads, combined);
  } else {
    mean_of_heads<double>(torch::stable::contiguous(torch::stable::to(logits, ScalarType::Double)), heads, combined);
  }
  return combined;
}

WeightResults fdiv_weight(const FdivWeightArguments& call) {
  expect(call.logits.has_value() && call.logits->dim() > 0, "logits: expected shape (B,) or (B, heads)");
  const Tensor& logits = *call.logits;
  const int64_t batch = logits.size(0);
  const auto options = weight_options(call);
  const auto state = ratio_state(call, logits);
  std::vector<double> L = combine(logits, batch), levels;
  if (call.t) levels = to_double(*call.t, batch, "t");
  Tensor weight = new_tensor({batch}, ScalarType::Double, logits);
  Tensor stats = new_tensor({fdkernels::kWeightStats}, ScalarType::Double, logits);
  fdkernels::fdiv_weight(batch, L.data(), call.t ? levels.data() : nullptr, state, options,
                         static_cast<double*>(weight.data_ptr()), static_cast<double*>(stats.data_ptr()));
  return {weight, stats};
}

// Sets the terms and gradients of samples whose mean over heads is not finite to zero.
void drop_samples(const GeneratorTensors& generator, std::vector<double>& sums) {
  const fdkernels::Generator& g = generator.term;
  const std::vector<double> means = combine(generator.logits, static_cast<int64_t>(sums.size()));
  const int64_t bytes = g.heads * fdkernels::size_of(g.logits.dtype);
  for (size_t b = 0; b < sums.size(); ++b) {
    if (fdkernels::is_finite(means[b])) continue;
    sums[b] = 0;
    if (g.gradient != nullptr) std::memset(static_cast<char*>(g.gradient) + static_cast<int64_t>(b) * bytes, 0, bytes);
  }
}

// Adds the generator's term to the loss, or to each sample's loss, and stores the gradient of its logits. Returns the
// term before its weight; with "none", its mean over samples.
double add_generator(const GeneratorTensors& generator, int64_t batch, bool per_sample, std::vector<double>& losses) {
  const fdkernels::Generator& g = generator.term;
  if (g.logits.data == nullptr) return std::numeric_limits<double>::quiet_NaN();
  fdkernels::Adversarial terms{};
  terms.batch = batch, terms.elements = g.heads;
  terms.logits = g.logits;
  terms.kind = fdkernels::AdversarialKind::logistic;
  terms.sign = -1, terms.bound = std::numeric_limits<double>::infinity();
  terms.gradient = {g.gradient, g.gradient_scale};
  std::vector<double> sums = fdkernels::cpu::sums_of_terms(terms, threads());
  if (g.drops) drop_samples(generator, sums);
  for (int64_t b = 0; b < batch; ++b) losses[per_sample ? b : 0] += g.scale * sums[b];
  return std::accumulate(sums.begin(), sums.end(), 0.0) * g.mean;
}

FdivResults fdiv(const FdivArguments& call) {
  fdkernels::Problem p = problem(call);
  const auto options = weight_options(call);
  const auto state = ratio_state(call, call.student);
  std::vector<double> L, h(p.batch, 1.0), levels;
  if (call.logits) L = combine(*call.logits, p.batch);
  if (call.weight) h = to_double(*call.weight, p.batch, "weight");
  if (call.t) levels = to_double(*call.t, p.batch, "t");

  const FdivTensors out(call, p);
  // Before the weights move the state: these may refuse the call.
  const GeneratorTensors generator(call, out);
  const double count = host_count(call.divisor);
  double unused_stats[fdkernels::kStats];
  double* stats = call.with_stats ? static_cast<double*>(out.stats.data_ptr()) : unused_stats;
  if (call.logits) {
    fdkernels::fdiv_weight(p.batch, L.data(), call.t ? levels.data() : nullptr, state, options, h.data(), stats);
  } else {
    for (int64_t b = 0; call.t && b < p.batch; ++b) {
      if (!std::isfinite(levels[b])) h[b] = std::numeric_limits<double>::quiet_NaN();
    }
    fdkernels::given_weight_stats(p.batch, h.data(), stats);
  }
  if (call.with_stats) std::copy(h.begin(), h.end(), stats + fdkernels::kStats);
  p.weight = h.data();
  p.gradient = out.data();
  std::vector<double> losses(out.per_sample ? p.batch : 1);
  fdkernels::cpu::fdiv(p, count, threads(), losses.data(), out.unscale_data(), call.with_stats ? stats : nullptr);
  stats[fdkernels::kStats - 1] = add_generator(generator, p.batch, out.per_sample, losses);
  generator.set_unscale(generator.term.unscale_value);
  for (size_t b = 0; b < losses.size(); ++b) out.set_loss(b, losses[b]);
  return results_of(out, generator);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("fdiv_native", (&boxed<FdivArguments, FdivResults, &fdiv>));
  m.impl("fdiv_weight_native", (&boxed<FdivWeightArguments, WeightResults, &fdiv_weight>));
}
