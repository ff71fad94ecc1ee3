// Numbers: which are finite, and half precision to float and back; for host and device.
//
// In an unnamed namespace: the CPU's kernels compile this once per instruction set, and a function shared between those
// could be linked from the widest one into the path of a processor that lacks it.
#pragma once

#include <bit>
#include <cstdint>

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
  // Adding a power of two at the half's last place makes the float adder round.
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
#endif
}

// 2^k with k = floor(log2 v) of a v of at least 1: v without its fraction. float16 stores a gradient g / N times that
// of N, since g / N underflows it.
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
