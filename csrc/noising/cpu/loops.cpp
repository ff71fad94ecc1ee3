// The op noising's loop over elements, in blocks that stay in L1: reads its inputs once, and rounds once on store.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#include "noising/cpu/loops.h"

#include "core/cpu/blocks.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

// Numbers first, ..., first + count - 1 of a stream, at most kBlock.
template <class T>
void draw(uint64_t seed, uint64_t first, int count, T* out) {
  constexpr int kCounters = kBlock / 4 + 1;
  const uint64_t counter = first / 4;
  const int skipped = static_cast<int>(first % 4), counters = (skipped + count + 3) / 4;
  alignas(64) uint32_t bits[4][kCounters];
  alignas(64) T z[4][kCounters], numbers[4 * kCounters];
#pragma omp simd
  for (int k = 0; k < counters; ++k) {
    const Bits4 drawn = philox(seed, counter + k);
    for (int word = 0; word < 4; ++word) bits[word][k] = drawn.word[word];
  }
  for (int pair = 0; pair < 4; pair += 2) {
#pragma omp simd
    for (int k = 0; k < counters; ++k) {
      const Pair<T> two = normal_pair<T>(bits[pair][k], bits[pair + 1][k]);
      z[pair][k] = two.cosine, z[pair + 1][k] = two.sine;
    }
  }
  for (int k = 0; k < counters; ++k) {
    for (int n = 0; n < 4; ++n) numbers[4 * k + n] = z[n][k];
  }
  std::memcpy(out, numbers + skipped, count * sizeof(T));
}

// In float with fused multiply-adds, or in double, so that terms may cancel.
template <class T, class Stored, class StoredNoise>
void mix_run(const Stored* x, const StoredNoise* noise, int64_t count, const Map& terms, Stored* y) {
  using Wide = decltype(number(Stored{}));
  using Arithmetic = std::conditional_t<kFusedMultiplyAdd, T, double>;
  const Coefficients<Arithmetic> k = split<Arithmetic>(terms);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    put(static_cast<Wide>(affine(static_cast<Arithmetic>(number(x[i])), static_cast<Arithmetic>(number(noise[i])), k)),
        y[i]);
  }
}

// The same for a block whose elements do not share their terms, in double.
template <class Stored, class Noise>
void mix_each(const Noising& p, const Stored* x, const Noise* noise, int64_t b, int64_t at, int count, Stored* y) {
  using Wide = decltype(number(Stored{}));
  alignas(64) double alpha[kBlock], sigma[kBlock];
  expand_values(p.alpha, b, at, count, alpha);
  expand_values(p.sigma, b, at, count, sigma);
  if (p.result != NoisingResult::noisy) {
    for (int i = 0; i < count; ++i) {
      const Map map = terms_of(p, alpha[i], sigma[i]);
      alpha[i] = map.a, sigma[i] = map.c;
    }
  }
#pragma omp simd
  for (int i = 0; i < count; ++i) put(static_cast<Wide>(alpha[i] * number(x[i]) + sigma[i] * number(noise[i])), y[i]);
}

// A block of drawn noise, rounded as it is stored.
template <class T>
const T* drawn_noise(const Noising& p, int64_t at, int count, T* buffer) {
  draw(static_cast<uint64_t>(*p.seed), static_cast<uint64_t>(at), count, buffer);
  with_type<AnyType>(p.x.dtype, [&](auto type) {
    for (int i = 0; i < count; ++i) buffer[i] = as_stored<decltype(type)>(buffer[i], p.x.dtype);
  });
  if (p.drawn != nullptr) narrow(buffer, count, p.drawn, p.x.dtype, at);
  return buffer;
}

template <class T>
void mix_blocks(const Noising& p, int64_t b, int64_t begin, int64_t end) {
  alignas(64) T noise_buffer[kBlock] = {};
  const bool has_runs = has_long_runs(p.alpha) && has_long_runs(p.sigma);
  with_type<AnyType>(p.x.dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* x = static_cast<const Stored*>(p.x.data) + b * p.x.batch_stride;
    Stored* y = static_cast<Stored*>(p.y) + b * p.elements;
    const auto mix = [&](const auto* noise, int64_t at, int count) {
      if (has_runs) {
        mix_run<T>(x + at, noise, count, terms_at(p, b, at), y + at);
      } else {
        mix_each(p, x + at, noise, b, at, count, y + at);
      }
    };
    for (int64_t at = begin; at < end;) {
      int64_t count = end - at < kBlock ? end - at : kBlock;
      if (has_runs) count = same_terms(p, at, count);
      const int elements = static_cast<int>(count);
      if (p.noise.data != nullptr && p.noise.dtype == p.x.dtype) {
        mix(static_cast<const Stored*>(p.noise.data) + b * p.noise.batch_stride + at, at, elements);
      } else if (p.noise.data != nullptr) {
        mix(load(p.noise, b, at, elements, noise_buffer), at, elements);
      } else if (p.seed != nullptr) {
        mix(drawn_noise(p, b * p.elements + at, elements, noise_buffer), at, elements);
      } else {
        mix(noise_buffer, at, elements);
      }
      at += count;
    }
  });
}

void mix(const Noising& p, int64_t b, int64_t begin, int64_t end) {
  return p.is_wide() ? mix_blocks<double>(p, b, begin, end) : mix_blocks<float>(p, b, begin, end);
}

}  // namespace

const NoisingFunction noising = mix;

}  // namespace fdkernels::FDKERNELS_ISA
