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
#ifdef __FMA__
  using Arithmetic = T;
#else
  using Arithmetic = double;
#endif
  constexpr int kSums = 64 / sizeof(Stored);
  const Coefficients<Arithmetic> k = split<Arithmetic>(run.target);
  const Arithmetic by = static_cast<Arithmetic>(factor * run.weight);
  alignas(64) double sums[kSums] = {};
  const auto add = [&](int64_t i, int lane) {
    const Arithmetic d = difference_of(static_cast<Arithmetic>(number(pred[i])), static_cast<Arithmetic>(number(x0[i])),
                                       static_cast<Arithmetic>(number(noise[i])), k);
    sums[lane] += static_cast<double>(d) * static_cast<double>(d);
    if constexpr (kStores) put(static_cast<Wide>(by * d), gradient[i]);
  };
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
#pragma omp simd
    for (int lane = 0; lane < kSums; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < count; ++lane) add(i + lane, lane);
  double total = 0;
  for (double sum : sums) total += sum;
  return run.weight * total;
}

template <class T>
double denoise_blocks(const Denoising& p, int64_t b, int64_t begin, int64_t end, double factor) {
  alignas(64) T x0_buffer[kBlock], noise_buffer[kBlock];
  double total = 0;
  with_type<AnyType>(p.pred.dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* pred = static_cast<const Stored*>(p.pred.data) + b * p.pred.batch_stride;
    Stored* gradient = p.gradient == nullptr ? nullptr : static_cast<Stored*>(p.gradient) + b * p.elements;
    const bool same = p.x0.dtype == p.pred.dtype && p.noise.dtype == p.pred.dtype;
    const auto sum = [&](const auto* x0, const auto* noise, int64_t at, int count, const DenoisingRun& run) {
      return gradient == nullptr ? denoise_run<false, T>(pred + at, x0, noise, count, run, factor, gradient)
                                 : denoise_run<true, T>(pred + at, x0, noise, count, run, factor, gradient + at);
    };
    for (int64_t at = begin; at < end;) {
      const int count = static_cast<int>(same_entries(p, at, end - at < kBlock ? end - at : kBlock));
      const DenoisingRun run = run_around(p, b, at);
      if (same) {
        const Stored* x0 = static_cast<const Stored*>(p.x0.data) + b * p.x0.batch_stride;
        const Stored* noise = static_cast<const Stored*>(p.noise.data) + b * p.noise.batch_stride;
        total += sum(x0 + at, noise + at, at, count, run);
      } else {
        const T* x0 = load(p.x0, b, at, count, x0_buffer);
        const T* noise = load(p.noise, b, at, count, noise_buffer);
        total += sum(x0, noise, at, count, run);
      }
      at += count;
    }
  });
  return total;
}

double denoise(const Denoising& p, int64_t b, int64_t begin, int64_t end, double factor) {
  return p.is_wide() ? denoise_blocks<double>(p, b, begin, end, factor)
                     : denoise_blocks<float>(p, b, begin, end, factor);
}

}  // namespace

const DenoisingFunction denoising = denoise;

}  // namespace fdkernels::FDKERNELS_ISA
