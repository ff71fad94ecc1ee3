// Conversion of stored numbers to the type of the arithmetic (widen) and back (narrow). Keep functions in the unnamed
// namespace: see core/numbers.h.
#pragma once

#include "core/numbers.h"
#include "core/tensors.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fdkernels {

namespace {

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
