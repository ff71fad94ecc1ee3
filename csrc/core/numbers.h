// Numbers on host and device: a test for finite ones, and conversions between half precision and float.
//
// Keep functions in the unnamed namespace. Objects for several instruction sets include this file: of a function that
// they share, the linker may keep the AVX-512 copy for every CPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/host_device.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fdkernels {

struct Bf16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

namespace {

template <class T>
FDK_HOST_DEVICE inline bool is_finite(T v) {
  return v - v == 0;
}

// first ? a : b, and -v or v: no compiler makes branches of these.
template <class T>
FDK_HOST_DEVICE inline T either(bool first, T a, T b) {
  using Bits = std::conditional_t<sizeof(T) == sizeof(double), uint64_t, uint32_t>;
  const Bits mask = Bits(0) - static_cast<Bits>(first);
  return std::bit_cast<T>((std::bit_cast<Bits>(a) & mask) | (std::bit_cast<Bits>(b) & ~mask));
}

template <class T>
FDK_HOST_DEVICE inline T negated(bool negative, T v) {
  using Bits = std::conditional_t<sizeof(T) == sizeof(double), uint64_t, uint32_t>;
  return std::bit_cast<T>(std::bit_cast<Bits>(v) ^ static_cast<Bits>(negative) << (8 * sizeof(T) - 1));
}

FDK_HOST_DEVICE inline float magnitude(float v) {
  return ::fabsf(v);
}

FDK_HOST_DEVICE inline double magnitude(double v) {
  return ::fabs(v);
}

// A value, or 0 if it is masked.
FDK_HOST_DEVICE inline float kept_or_zero(float v, bool keep) {
  return keep ? v : 0.0f;
}

FDK_HOST_DEVICE inline double kept_or_zero(double v, bool keep) {
  return keep ? v : 0.0;
}

FDK_HOST_DEVICE inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

FDK_HOST_DEVICE inline uint16_t float_to_bf16(float value) {
#ifdef __CUDA_ARCH__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
#endif
}

FDK_HOST_DEVICE inline float half_to_float(uint16_t bits) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(bits));
#else
  // Shift the exponent into place, then let a multiplication normalize subnormals.
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t result = (bits & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : finite;
  return std::bit_cast<float>(result | (static_cast<uint32_t>(bits & 0x8000u) << 16));
#endif
}

// Round to nearest even.
FDK_HOST_DEVICE inline uint16_t float_to_half(float value) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536
  if (magnitude < 0x38800000u) {  // subnormal: 0.5f has the half's last place, so the float adder rounds
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
#endif
}

// The largest power of two up to v, for v >= 1. A float16 gradient is stored as g / N times float16_power(N), since
// g / N alone underflows.
FDK_HOST_DEVICE inline double float16_power(double v) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & 0xfff0000000000000u);
}

FDK_HOST_DEVICE inline float number(Bf16 v) {
  return bf16_to_float(v.bits);
}

FDK_HOST_DEVICE inline float number(Half v) {
  return half_to_float(v.bits);
}

FDK_HOST_DEVICE inline float number(float v) {
  return v;
}

FDK_HOST_DEVICE inline double number(double v) {
  return v;
}

FDK_HOST_DEVICE inline void put(float v, Bf16& out) {
  out.bits = float_to_bf16(v);
}

FDK_HOST_DEVICE inline void put(float v, Half& out) {
  out.bits = float_to_half(v);
}

FDK_HOST_DEVICE inline void put(float v, float& out) {
  out = v;
}

FDK_HOST_DEVICE inline void put(double v, double& out) {
  out = v;
}

}  // namespace

}  // namespace fdkernels
