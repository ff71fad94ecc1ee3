// The op fdiv on the CPU: a batch's sums, coefficients, gradients and results.

#include "fdiv/cpu/samples.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "core/numbers.h"
#include "fdiv/cpu/loops.h"
#include "fdiv/weight.h"

namespace fdkernels::cpu {

namespace {

// Unmasked elements of each sample.
std::vector<double> count_kept(const Problem& p, const Threads& threads) {
  std::vector<double> kept(p.batch, static_cast<double>(p.elements));
  if (p.mask.data == nullptr) return kept;
  const uint8_t* data = static_cast<const uint8_t*>(p.mask.data);
  const double per_entry = static_cast<double>(p.elements / p.mask.entries);
  const int64_t rows = p.mask.batch_stride == 0 ? std::min<int64_t>(p.batch, 1) : p.batch;
  parallel(threads, rows, std::max<int64_t>(1, 8 * kGrain / p.mask.entries), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t entries = 0;
      for (int64_t i = 0; i < p.mask.entries; ++i) entries += data[b * p.mask.batch_stride + i] != 0;
      kept[b] = static_cast<double>(entries) * per_entry;
    }
  });
  if (rows < p.batch) std::fill(kept.begin(), kept.end(), kept[0]);
  return kept;
}

class Batch {
 public:
  using Sums = fdkernels::Sums;

  Batch(const Problem& problem, double count, const Threads& threads)
      : p_(problem),
        loops_(by_isa(baseline::loops, v3::loops, v4::loops)),
        wide_(problem.is_wide()),
        sums_(problem.batch),
        weight_(problem.batch),
        divisor_(problem.batch, 1.0) {
    const bool divides = p_.reduction != Reduction::sum && count == 0;
    if (count != 0) std::fill(divisor_.begin(), divisor_.end(), count);
    if (!divides && !p_.kept_only) return;
    const std::vector<double> kept = count_kept(p_, threads);
    for (int64_t b = 0; b < p_.batch; ++b) sums_[b].kept = kept[b];
    if (!divides) return;
    double total = 0;
    for (const double each : kept) total += each;
    for (int64_t b = 0; b < p_.batch; ++b) {
      divisor_[b] = std::max(1.0, p_.reduction == Reduction::none ? kept[b] : total);
    }
  }

  // ---- for core/cpu/passes.h

  Sums reduce(int64_t b, int64_t begin, int64_t end) const {
    return (wide_ ? loops_.reduce_wide : loops_.reduce)(p_, b, begin, end);
  }

  void add(int64_t b, const Sums& part) {
    Sums& total = sums_[b];
    total.distance += part.distance;
    total.energy += part.energy;
    total.gap += part.gap;
    total.nonfinite |= part.nonfinite;
  }

  void finish(int64_t b) {
    weight_[b] = sample_weight(p_, b, p_.weight[b], sums_[b]);
  }

  bool stores() const {
    return p_.gradient != nullptr;
  }

  void store(int64_t b, int64_t begin, int64_t end) const {
    if (sums_[b].nonfinite && p_.zero_nonfinite) {  // 0 * infinity is not zero
      const int64_t size = size_of(p_.student.dtype);
      std::memset(static_cast<char*>(p_.gradient) + (b * p_.elements + begin) * size, 0, (end - begin) * size);
      return;
    }
    const double power = p_.student.dtype == DType::f16 ? float16_power(divisor_[b]) : 1.0;
    (wide_ ? loops_.apply_wide : loops_.apply)(p_, b, begin, end, weight_[b] / divisor_[b] * power);
  }

  // ---- after both passes

  void results(double* loss, float* unscale, double* stats) const {
    double total = 0, norm = 0, gap = 0, distance = 0, nonfinite = 0;
    for (int64_t b = 0; b < p_.batch; ++b) {
      const bool dropped = sums_[b].nonfinite && p_.zero_nonfinite;
      const double energy = dropped ? 0.0 : weight_[b] * weight_[b] * sums_[b].energy;
      if (p_.reduction == Reduction::none) loss[b] = 0.5 * energy / divisor_[b];
      total += energy;
      norm += energy / (divisor_[b] * divisor_[b]);
      nonfinite += sums_[b].nonfinite;
      if (!sums_[b].nonfinite) {
        gap += sums_[b].gap;
        distance += sums_[b].distance;
      }
      if (unscale != nullptr && (p_.reduction == Reduction::none || b == 0)) {
        unscale[b] = static_cast<float>(1.0 / float16_power(divisor_[b]));
      }
    }
    if (p_.reduction != Reduction::none) loss[0] = p_.batch > 0 ? 0.5 * total / divisor_[0] : 0.0;
    if (unscale != nullptr && p_.batch == 0 && p_.reduction != Reduction::none) unscale[0] = 1;
    if (stats != nullptr) {
      stats[kWeightStats] = std::sqrt(norm);
      stats[kWeightStats + 1] = gap / distance;
      stats[kWeightStats + 2] = nonfinite;
    }
  }

 private:
  const Problem& p_;
  const Loops& loops_;
  const bool wide_;
  std::vector<Sums> sums_;
  std::vector<double> weight_, divisor_;
};

}  // namespace

void fdiv(const Problem& problem, double count, const Threads& threads, double* loss, float* unscale, double* stats) {
  Batch batch(problem, count, threads);
  const int64_t bytes = problem.elements * 3 * size_of(problem.student.dtype);
  pass_samples(batch, problem.batch, problem.elements, bytes, threads);
  batch.results(loss, unscale, stats);
}

}  // namespace fdkernels::cpu
