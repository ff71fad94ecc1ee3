// Half precision to float and back, one number or a run of them. In an unnamed namespace, like all that is compiled
// once per instruction set.
#pragma once

#include <bit>

#include "fdkernels/fdiv.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fdkernels {

namespace {

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// IEEE half to single: shift the exponent into place, then let a multiplication normalize subnormals.
inline float half_to_float(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t result = (bits & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : finite;
  return std::bit_cast<float>(result | (static_cast<uint32_t>(bits & 0x8000u) << 16));
}

// Round to nearest even. Adding a power of two at the half's last place makes the float adder round.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536
  if (magnitude < 0x38800000u) {                                               // subnormal
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

template <class T>
void widen(const void* source, DType dtype, int64_t offset, int count, T* out) {
  switch (dtype) {
    case DType::f32: {
      const float* in = static_cast<const float*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      return;
    }
    case DType::f64: {
      const double* in = static_cast<const double*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      return;
    }
    case DType::bf16: {
      const uint16_t* in = static_cast<const uint16_t*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(bf16_to_float(in[i]));
      return;
    }
    case DType::f16: {
      const uint16_t* in = static_cast<const uint16_t*>(source) + offset;
      int i = 0;
#ifdef __F16C__
      if constexpr (sizeof(T) == sizeof(float)) {
        for (; i + 8 <= count; i += 8) {
          const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
          _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
        }
      }
#endif
      for (; i < count; ++i) out[i] = static_cast<T>(half_to_float(in[i]));
      return;
    }
  }
}

template <class T>
void narrow(const T* in, int count, void* target, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::f32: {
      float* out = static_cast<float*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
      return;
    }
    case DType::f64: {
      double* out = static_cast<double*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<double>(in[i]);
      return;
    }
    case DType::bf16: {
      uint16_t* out = static_cast<uint16_t*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = float_to_bf16(static_cast<float>(in[i]));
      return;
    }
    case DType::f16: {
      uint16_t* out = static_cast<uint16_t*>(target) + offset;
      int i = 0;
#ifdef __F16C__
      if constexpr (sizeof(T) == sizeof(float)) {
        for (; i + 8 <= count; i += 8) {
          const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
        }
      }
#endif
      for (; i < count; ++i) out[i] = float_to_half(static_cast<float>(in[i]));
      return;
    }
  }
}

}  // namespace

}  // namespace fdkernels
