// Normal random numbers, the same on every device: number i of a stream depends on the stream's seed and i alone.
//
// Four numbers come from one call of Philox4x32-10 (Salmon et al. 2011) with the seed as key and i / 4 as counter, by
// two Box-Muller transforms: r sin and r cos, r = sqrt(-2 log u). u and the angle are a 32-bit integer plus 1/2, over
// 2^32: never 0, so |z| is at most 6.8.
//
// Nothing but additions, products, square roots and polynomials (and a logarithm, in double): loops vectorize, and
// devices differ by a few units in the last place, since compilers may fuse products with sums.
// fdkernels/_triton/random.py has the same expressions, fdkernels/noising/reference.py the same numbers in float64.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/numbers.h"

namespace fdkernels {

namespace {

struct Bits4 {
  uint32_t word[4];
};

FDK_HOST_DEVICE inline Bits4 philox(uint64_t seed, uint64_t counter) {
  Bits4 c{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  FDK_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53u} * c.word[0], right = uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<uint32_t>(right >> 32) ^ c.word[1] ^ key[0], static_cast<uint32_t>(right),
          static_cast<uint32_t>(left >> 32) ^ c.word[3] ^ key[1], static_cast<uint32_t>(left)}};
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return c;
}

// -log u of u = (bits + 1/2) / 2^32. Near 1 the distance to 1 decides, so it is what is converted to float.
FDK_HOST_DEVICE inline float minus_log(uint32_t bits) {
  const bool upper = bits >> 31 != 0;
  const float x =
      static_cast<float>(static_cast<int32_t>(bits ^ (0u - (bits >> 31)))) * 0x1p-32f + 0x1p-33f;  // u or 1 - u
  // u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const uint32_t stored = std::bit_cast<uint32_t>(x);
  const int32_t lower_exponent = static_cast<int32_t>(stored - 0x3f3504f3u) >> 23;
  const float lower_f = std::bit_cast<float>(stored - (static_cast<uint32_t>(lower_exponent) << 23)) - 1.0f;
  const bool halved = x > 0.29289321881f;  // 1 - x < sqrt(1/2)
  const float f = either(upper, either(halved, 1.0f - 2.0f * x, -x), lower_f);
  const float exponent = either(upper, either(halved, -1.0f, 0.0f), static_cast<float>(lower_exponent));
  // log(1 + f) = f - f^2 / 2 + f^3 P(f): the coefficients of Cephes' logf.
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  return -(f + (p * f * square - 0.5f * square + exponent * -2.12194440e-4f) + exponent * 0.693359375f);
}

FDK_HOST_DEVICE FDK_CALLED double minus_log_wide(uint32_t bits) {
  return -::log((static_cast<double>(bits) + 0.5) * 0x1p-32);
}

template <class T>
struct Pair {
  T cosine, sine;
};

// Of an angle of at most pi / 4, by Cephes' polynomials.
FDK_HOST_DEVICE inline Pair<float> of_angle(float angle) {
  const float square = angle * angle;
  const float s = (-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f;
  const float c = (2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
  return {1.0f - 0.5f * square + square * square * c, angle + angle * square * s};
}

FDK_HOST_DEVICE inline Pair<double> of_angle(double angle) {
  const double square = angle * angle;
  double s = 1.58962301576546568060e-10;
  s = s * square - 2.50507477628578072866e-8;
  s = s * square + 2.75573136213857245213e-6;
  s = s * square - 1.98412698295895385996e-4;
  s = s * square + 8.33333333332211858878e-3;
  s = s * square - 1.66666666666666307295e-1;
  double c = -1.13585365213876817300e-11;
  c = c * square + 2.08757008419747316778e-9;
  c = c * square - 2.75573141792967388112e-7;
  c = c * square + 2.48015872888517045348e-5;
  c = c * square - 1.38888888888730564116e-3;
  c = c * square + 4.16666666666665929218e-2;
  return {1.0 - 0.5 * square + square * square * c, angle + angle * square * s};
}

// Of the angle 2 pi (bits + 1/2) / 2^32, reduced to the nearest multiple of a quarter turn.
template <class T>
FDK_HOST_DEVICE inline Pair<T> on_circle(uint32_t bits) {
  const uint32_t shifted = bits + 0x20000000u, quarter = shifted >> 30;
  const int32_t within = static_cast<int32_t>(shifted & 0x3fffffffu) - 0x20000000;
  const Pair<T> at = of_angle((static_cast<T>(within) + T(0.5)) * T(1.4629180792671596e-9));  // pi / 2^31
  const bool odd = (quarter & 1) != 0, lower_half = quarter >> 1 != 0;
  return {negated(odd != lower_half, either(odd, at.sine, at.cosine)),
          negated(lower_half, either(odd, at.cosine, at.sine))};
}

FDK_HOST_DEVICE inline float root(float v) {
#ifdef __CUDA_ARCH__
  return v * ::rsqrtf(v);  // v > 0; sqrtf() would call a function for small numbers
#else
  return ::sqrtf(v);
#endif
}

// Two normal numbers of two words.
template <class T>
FDK_HOST_DEVICE inline Pair<T> normal_pair(uint32_t radius, uint32_t angle) {
  const Pair<T> at = on_circle<T>(angle);
  T r;
  if constexpr (sizeof(T) == sizeof(double)) {
    r = ::sqrt(2.0 * minus_log_wide(radius));
  } else {
    r = root(2.0f * minus_log(radius));
  }
  return {r * at.cosine, r * at.sine};
}

// Numbers i, ..., i + W - 1 of a stream. W is 1, 2 or a multiple of 4, and i a multiple of the lesser of W and 4.
template <int W, class T>
FDK_HOST_DEVICE inline void normals(uint64_t seed, uint64_t i, T (&out)[W]) {
  static_assert(W <= 2 || W % 4 == 0);
  if constexpr (W % 4 == 0) {
    FDK_UNROLL
    for (int n = 0; n < W; n += 4) {
      const Bits4 bits = philox(seed, (i + n) / 4);
      const Pair<T> first = normal_pair<T>(bits.word[0], bits.word[1]);
      const Pair<T> second = normal_pair<T>(bits.word[2], bits.word[3]);
      out[n] = first.cosine, out[n + 1] = first.sine, out[n + 2] = second.cosine, out[n + 3] = second.sine;
    }
  } else {
    const Bits4 bits = philox(seed, i / 4);
    const bool second = (i & 2) != 0;
    const Pair<T> pair = normal_pair<T>(second ? bits.word[2] : bits.word[0], second ? bits.word[3] : bits.word[1]);
    if constexpr (W == 2) {
      out[0] = pair.cosine, out[1] = pair.sine;
    } else {
      out[0] = (i & 1) != 0 ? pair.sine : pair.cosine;
    }
  }
}

}  // namespace

}  // namespace fdkernels
