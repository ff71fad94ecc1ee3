// A sample's weight needs its mean |x - tau| before its first gradient is stored, so each sample is passed twice:
// reduce, then apply. Memory sees each input once as long as the second pass finds it in cache:
//
//   whole samples   a thread takes a sample through both passes; it stays in that core's L2
//   split samples   all threads reduce one sample in chunks, then apply it; it stays in the shared cache
//
// Chunks depend on the sample's size alone and their sums are added in order, so results have the same bits for any
// number of threads.

#include "fdiv/cpu/samples.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/cpu/isa.h"
#include "core/numbers.h"
#include "fdiv/cpu/loops.h"
#include "fdiv/weight.h"

namespace fdkernels {

const Kernels& kernels() {
  return cpu::by_isa(baseline::kernels, v3::kernels, v4::kernels);
}

namespace cpu {

namespace {

constexpr int64_t kChunk = 16384;          // elements one thread reduces at a time in a split sample
constexpr int64_t kWholeSample = 1 << 20;  // bytes of inputs that stay in a core's L2

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

void add(Sums& total, const Sums& part) {
  total.distance += part.distance;
  total.energy += part.energy;
  total.gap += part.gap;
  total.nonfinite |= part.nonfinite;
}

class Batch {
 public:
  Batch(const Problem& problem, double count, const Threads& threads)
      : p_(problem),
        threads_(threads),
        reduce_(problem.is_wide() ? kernels().reduce_wide : kernels().reduce),
        apply_(problem.is_wide() ? kernels().apply_wide : kernels().apply),
        sums_(problem.batch),
        weight_(problem.batch),
        divisor_(problem.batch, 1.0) {
    const bool divides = p_.reduction != Reduction::sum && count == 0;
    if (count != 0) std::fill(divisor_.begin(), divisor_.end(), count);
    if (!divides && !p_.kept_only) return;
    const std::vector<double> kept = count_kept(p_, threads_);
    for (int64_t b = 0; b < p_.batch; ++b) sums_[b].kept = kept[b];
    if (!divides) return;
    double total = 0;
    for (const double each : kept) total += each;
    for (int64_t b = 0; b < p_.batch; ++b) {
      divisor_[b] = std::max(1.0, p_.reduction == Reduction::none ? kept[b] : total);
    }
  }

  void elements() {
    const int64_t bytes = p_.elements * 3 * size_of(p_.student.dtype);
    const bool small = p_.elements <= kChunk;
    if (small || (bytes <= kWholeSample && p_.batch >= threads_.count)) {
      parallel(threads_, p_.batch, std::max<int64_t>(1, kGrain / p_.elements), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) whole_sample(b);
      });
    } else {
      for (int64_t b = 0; b < p_.batch; ++b) split_sample(b);
    }
  }

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
  void whole_sample(int64_t b) {
    for (int64_t at = 0; at < p_.elements; at += kChunk) {
      add(sums_[b], reduce_(p_, b, at, std::min(p_.elements, at + kChunk)));
    }
    weight_[b] = sample_weight(p_, b, p_.weight[b], sums_[b]);
    if (p_.gradient != nullptr) store(b, 0, p_.elements);
  }

  void split_sample(int64_t b) {
    const int64_t chunks = (p_.elements + kChunk - 1) / kChunk;
    std::vector<Sums> partial(chunks);
    parallel(threads_, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        partial[i] = reduce_(p_, b, i * kChunk, std::min(p_.elements, (i + 1) * kChunk));
      }
    });
    for (const Sums& sums : partial) add(sums_[b], sums);
    weight_[b] = sample_weight(p_, b, p_.weight[b], sums_[b]);
    if (p_.gradient == nullptr) return;
    parallel(threads_, chunks, 1,
             [&](int64_t begin, int64_t end) { store(b, begin * kChunk, std::min(p_.elements, end * kChunk)); });
  }

  void store(int64_t b, int64_t begin, int64_t end) const {
    if (sums_[b].nonfinite && p_.zero_nonfinite) {  // 0 * infinity is not zero
      const int64_t size = size_of(p_.student.dtype);
      std::memset(static_cast<char*>(p_.gradient) + (b * p_.elements + begin) * size, 0, (end - begin) * size);
      return;
    }
    const double power = p_.student.dtype == DType::f16 ? float16_power(divisor_[b]) : 1.0;
    apply_(p_, b, begin, end, weight_[b] / divisor_[b] * power);
  }

  const Problem& p_;
  const Threads& threads_;
  const ReduceFunction reduce_;
  const ApplyFunction apply_;
  std::vector<Sums> sums_;
  std::vector<double> weight_, divisor_;
};

}  // namespace

void fdiv(const Problem& problem, double count, const Threads& threads, double* loss, float* unscale, double* stats) {
  Batch batch(problem, count, threads);
  batch.elements();
  batch.results(loss, unscale, stats);
}

}  // namespace cpu

}  // namespace fdkernels
