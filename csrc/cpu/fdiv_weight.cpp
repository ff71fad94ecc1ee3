// The weight h(r) of a batch, from its combined logits: O(B) work in double and in the log domain.

#include <vector>

#include "fdkernels/fdiv.h"

namespace fdkernels {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

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
    for (int64_t i = 0; i < state.bins; ++i) {
      if (count[i] > 0) {
        const double old = state.mean[i];
        state.mean[i] = static_cast<float>(state.decay * old + (1 - state.decay) * sum[i] / count[i]);
      }
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (finite[b]) L[b] -= std::log(static_cast<double>(state.mean[ratio_bin(state, t[b])]));
  }
}

}  // namespace

void fdiv_weight(int64_t batch, double* L, const double* t, const RatioState& state, const WeightOptions& options,
                 double* h, double* stats) {
  std::vector<char> finite(batch);
  double count = 0, clipped = 0, outside = 0, ratio_sum = 0;
  for (int64_t b = 0; b < batch; ++b) {
    finite[b] = std::isfinite(L[b]) && (t == nullptr || std::isfinite(t[b]));
    if (!finite[b]) continue;
    count += 1;
    clipped += L[b] < options.log_ratio_min || L[b] > options.log_ratio_max;
    L[b] = std::clamp(L[b], options.log_ratio_min, options.log_ratio_max);
    ratio_sum += std::exp(L[b]);
    if (state.mean != nullptr) outside += t[b] < state.t_min || t[b] > state.t_max;
  }
  if (state.mean != nullptr) normalize_ratio(batch, L, t, finite, state);

  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (int64_t b = 0; b < batch; ++b) {
    if (!finite[b]) continue;
    L[b] = log_weight(options.divergence, L[b], options.alpha);
    low = std::min(low, L[b]);
    high = std::max(high, L[b]);
  }
  // Relative to the largest weight, so that neither a mean nor a square overflows.
  double total = 0, squares = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (!finite[b]) continue;
    const double relative = std::exp(L[b] - high);
    total += relative;
    squares += relative * relative;
  }
  const double log_mean = options.normalize ? high + std::log(total / count) : 0.0;
  for (int64_t b = 0; b < batch; ++b) h[b] = finite[b] ? std::exp(L[b] - log_mean) : kNan;

  const bool any = count > 0;
  stats[0] = any ? std::exp(low) : kNan;
  stats[1] = any ? std::exp(high) * total / count : kNan;
  stats[2] = any ? std::exp(high) : kNan;
  stats[3] = any ? total * total / (static_cast<double>(batch) * squares) : kNan;
  stats[4] = ratio_sum / count;
  stats[5] = clipped / count;
  stats[6] = state.mean != nullptr ? outside / count : kNan;
}

void given_weight_stats(int64_t batch, const double* h, double* stats) {
  double low = std::numeric_limits<double>::infinity(), high = -low, count = 0, total = 0, squares = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (!std::isfinite(h[b])) continue;
    count += 1;
    total += h[b];
    squares += h[b] * h[b];
    low = std::min(low, h[b]);
    high = std::max(high, h[b]);
  }
  const bool any = count > 0;
  stats[0] = any ? low : kNan;
  stats[1] = any ? total / count : kNan;
  stats[2] = any ? high : kNan;
  stats[3] = any ? total * total / (static_cast<double>(batch) * squares) : kNan;
  stats[4] = stats[5] = stats[6] = kNan;
}

}  // namespace fdkernels
