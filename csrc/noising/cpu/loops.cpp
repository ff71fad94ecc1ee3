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
#ifdef __FMA__
  using Arithmetic = T;
#else
  using Arithmetic = double;
#endif
  const Coefficients<Arithmetic> k = split<Arithmetic>(terms);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    put(static_cast<Wide>(affine(static_cast<Arithmetic>(number(x[i])), static_cast<Arithmetic>(number(noise[i])), k)),
        y[i]);
  }
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
  with_type<AnyType>(p.x.dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* x = static_cast<const Stored*>(p.x.data) + b * p.x.batch_stride;
    Stored* y = static_cast<Stored*>(p.y) + b * p.elements;
    for (int64_t at = begin; at < end;) {
      const int count = static_cast<int>(same_terms(p, at, end - at < kBlock ? end - at : kBlock));
      const Map terms = terms_at(p, b, at);
      if (p.noise.data != nullptr && p.noise.dtype == p.x.dtype) {
        const Stored* noise = static_cast<const Stored*>(p.noise.data) + b * p.noise.batch_stride;
        mix_run<T>(x + at, noise + at, count, terms, y + at);
      } else {
        const T* noise = p.noise.data != nullptr ? load(p.noise, b, at, count, noise_buffer)
                         : p.seed != nullptr     ? drawn_noise(p, b * p.elements + at, count, noise_buffer)
                                                 : noise_buffer;
        mix_run<T>(x + at, noise, count, terms, y + at);
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
