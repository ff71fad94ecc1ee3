// The weight h(r) of a batch, from its combined logits, on one thread.

#include "fdiv/weight.h"

#include <vector>

namespace fdkernels {

namespace {

// Divides each ratio by the running mean of its bin, after this batch's update of it.
void normalize_ratio(int64_t batch, double* L, const double* t, const std::vector<char>& finite,
                     const RatioState& state) {
  if (state.update) {
    std::vector<double> sum(state.bins), count(state.bins);
    for (int64_t b = 0; b < batch; ++b) {
      if (!finite[b]) continue;
      const int64_t bin = ratio_bin(state, t[b]);
      sum[bin] += std::exp(L[b]);
      count[bin] += 1;
    }
    for (int64_t i = 0; i < state.bins; ++i) state.mean[i] = updated_mean(state.mean[i], sum[i], count[i], state.decay);
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (finite[b]) L[b] -= std::log(static_cast<double>(state.mean[ratio_bin(state, t[b])]));
  }
}

}  // namespace

void fdiv_weight(int64_t batch, double* L, const double* t, const RatioState& state, const WeightOptions& options,
                 double* h, double* stats) {
  std::vector<char> finite(batch);
  WeightSums sums{};
  for (int64_t b = 0; b < batch; ++b) {
    const LogRatio ratio = log_ratio(L[b], t == nullptr ? 0.0 : t[b], state, options);
    add(sums, ratio);
    L[b] = ratio.L;
    finite[b] = ratio.finite;
  }
  if (state.mean != nullptr) normalize_ratio(batch, L, t, finite, state);

  Extremes extremes = no_extremes();
  for (int64_t b = 0; b < batch; ++b) {
    if (!finite[b]) continue;
    L[b] = log_weight(options.divergence, L[b], options.alpha);
    finite[b] = add(sums, extremes, L[b]);
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (finite[b]) add_relative(sums, std::exp(L[b] - extremes.highest));
  }
  const double log_mean = log_mean_weight(sums, extremes, options.normalize);
  for (int64_t b = 0; b < batch; ++b) h[b] = finite[b] ? std::exp(L[b] - log_mean) : NAN;
  weight_stats(sums, extremes, batch, state.mean != nullptr, false, stats);
}

void given_weight_stats(int64_t batch, const double* h, double* stats) {
  WeightSums sums{};
  Extremes extremes = no_extremes();
  for (int64_t b = 0; b < batch; ++b) {
    if (!is_finite(h[b])) continue;
    add_relative(sums, h[b]);
    add(sums, extremes, h[b]);
  }
  weight_stats(sums, extremes, batch, false, true, stats);
}

}  // namespace fdkernels
