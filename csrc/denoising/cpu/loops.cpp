// The op denoising's loop over elements: reads each input once, adds up squares in double, and stores the gradient.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#include "denoising/cpu/loops.h"

#include "core/cpu/blocks.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

// Elements [0, count) of one run. In float with fused multiply-adds, or in double, since d is what remains of terms
// that cancel. There are as many running sums, in double, as 64 bytes hold stored values: that many elements are one
// step of a vectorized loop.
template <bool kStores, class T, class Stored, class StoredTarget>
double denoise_run(const Stored* pred, const StoredTarget* x0, const StoredTarget* noise, int64_t count,
                   const DenoisingRun& run, double factor, Stored* gradient) {
  using Wide = decltype(number(Stored{}));
  using Arithmetic = std::conditional_t<kFusedMultiplyAdd, T, double>;
  constexpr int kSums = 64 / sizeof(Stored);
  const Coefficients<Arithmetic> k = split<Arithmetic>(run.target);
  const Arithmetic by = static_cast<Arithmetic>(factor * run.weight);
  return run.weight * sum_in_double<kSums>(count, [&](int64_t i) {
           const Arithmetic d =
               difference_of(static_cast<Arithmetic>(number(pred[i])), static_cast<Arithmetic>(number(x0[i])),
                             static_cast<Arithmetic>(number(noise[i])), k);
           if constexpr (kStores) put(static_cast<Wide>(by * d), gradient[i]);
           return static_cast<double>(d) * static_cast<double>(d);
         });
}

// The same for a block whose elements do not share their table entries, in double.
template <bool kStores, class Stored, class StoredTarget>
double denoise_each(const Denoising& p, const Stored* pred, const StoredTarget* x0, const StoredTarget* noise,
                    int64_t b, int64_t at, int count, double factor, Stored* gradient) {
  using Wide = decltype(number(Stored{}));
  constexpr int kSums = 8;
  alignas(64) double alpha[kBlock], sigma[kBlock], weight[kBlock];
  expand_values(p.alpha, b, at, count, alpha);
  expand_values(p.sigma, b, at, count, sigma);
  expand_values(p.weight, b, at, count, weight);
  for (int i = 0; i < count; ++i) {
    const Map target = target_of(p.prediction, alpha[i], sigma[i], p.sigma_data);
    alpha[i] = target.a, sigma[i] = target.c;
  }
  return sum_in_double<kSums>(count, [&](int64_t i) {
    const double d = number(pred[i]) - (alpha[i] * number(x0[i]) + sigma[i] * number(noise[i]));
    if constexpr (kStores) put(static_cast<Wide>(factor * weight[i] * d), gradient[i]);
    return weight[i] * d * d;
  });
}

template <bool kStores, class T>
double denoise_blocks(const Denoising& p, int64_t b, int64_t begin, int64_t end, double factor) {
  alignas(64) T x0_buffer[kBlock], noise_buffer[kBlock];
  double total = 0;
  const bool has_runs = has_long_runs(p.alpha) && has_long_runs(p.sigma) && has_long_runs(p.weight);
  with_type<AnyType>(p.pred.dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* pred = static_cast<const Stored*>(p.pred.data) + b * p.pred.batch_stride;
    Stored* gradient = kStores ? static_cast<Stored*>(p.gradient) + b * p.elements : nullptr;
    const bool same = p.x0.dtype == p.pred.dtype && p.noise.dtype == p.pred.dtype;
    const auto sum = [&](const auto* x0, const auto* noise, int64_t at, int count) {
      Stored* to = kStores ? gradient + at : nullptr;
      return has_runs ? denoise_run<kStores, T>(pred + at, x0, noise, count, run_around(p, b, at), factor, to)
                      : denoise_each<kStores>(p, pred + at, x0, noise, b, at, count, factor, to);
    };
    for (int64_t at = begin; at < end;) {
      int64_t count = end - at < kBlock ? end - at : kBlock;
      if (has_runs) count = same_entries(p, at, count);
      const int elements = static_cast<int>(count);
      if (same) {
        total += sum(static_cast<const Stored*>(p.x0.data) + b * p.x0.batch_stride + at,
                     static_cast<const Stored*>(p.noise.data) + b * p.noise.batch_stride + at, at, elements);
      } else {
        total +=
            sum(load(p.x0, b, at, elements, x0_buffer), load(p.noise, b, at, elements, noise_buffer), at, elements);
      }
      at += count;
    }
  });
  return total;
}

template <class T>
double denoise_in(const Denoising& p, int64_t b, int64_t begin, int64_t end, double factor) {
  return p.gradient == nullptr ? denoise_blocks<false, T>(p, b, begin, end, factor)
                               : denoise_blocks<true, T>(p, b, begin, end, factor);
}

double denoise(const Denoising& p, int64_t b, int64_t begin, int64_t end, double factor) {
  return p.is_wide() ? denoise_in<double>(p, b, begin, end, factor) : denoise_in<float>(p, b, begin, end, factor);
}

}  // namespace

const DenoisingFunction denoising = denoise;

}  // namespace fdkernels::FDKERNELS_ISA
