// Loads and stores of vectors: V consecutive elements of an N-sized tensor, on host and device. V elements of a call's
// widest stored type are one 16-byte access; those of narrower types are 8 or 4 bytes.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstring>
#include <type_traits>

#include "core/numbers.h"
#include "core/tensors.h"

#ifdef __CUDACC__
#include "core/cuda/ptx.cuh"
#endif

namespace fdkernels {

// The stored types of the student (and x_t) and of the predictions, and the type of the arithmetic.
template <class StudentType, class PredictionType, class Arithmetic>
struct Types {
  using Student = StudentType;
  using Prediction = PredictionType;
  using T = Arithmetic;
};

// Where all inputs are stored as one type.
template <class Stored, class T>
using One = Types<Stored, Stored, T>;

template <class Stored, class T>
constexpr int kStoredBytes = sizeof(std::conditional_t<std::is_same_v<Stored, AnyType>, T, Stored>);

template <class Ty>
constexpr int kVector = 16 / std::max(kStoredBytes<typename Ty::Student, typename Ty::T>,
                                      kStoredBytes<typename Ty::Prediction, typename Ty::T>);

struct alignas(16) Words {
  uint32_t word[4];
};

// Reads a vector of 4, 8 or 16 bytes, aligned to its size, through the read-only cache: nothing may write to this
// memory while the kernel runs.
template <int kBytes>
FDK_HOST_DEVICE inline Words read_words(const void* from) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  Words words{};
#ifdef __CUDA_ARCH__
  if constexpr (kBytes == 16) {
    const uint4 v = __ldg(static_cast<const uint4*>(from));
    words = {v.x, v.y, v.z, v.w};
  } else if constexpr (kBytes == 8) {
    const uint2 v = __ldg(static_cast<const uint2*>(from));
    words.word[0] = v.x, words.word[1] = v.y;
  } else {
    words.word[0] = __ldg(static_cast<const unsigned*>(from));
  }
#else
  assert(reinterpret_cast<uintptr_t>(from) % kBytes == 0);
  std::memcpy(&words, from, kBytes);
#endif
  return words;
}

template <int kBytes>
FDK_HOST_DEVICE inline void write_words(const Words& words, void* to) {
#ifdef __CUDA_ARCH__
  if constexpr (kBytes == 16) {
    cuda::store_vector(to, words.word[0], words.word[1], words.word[2], words.word[3]);
  } else if constexpr (kBytes == 8) {
    cuda::store_vector(to, words.word[0], words.word[1]);
  } else {
    *static_cast<unsigned*>(to) = words.word[0];
  }
#else
  assert(reinterpret_cast<uintptr_t>(to) % kBytes == 0);
  std::memcpy(to, &words, kBytes);
#endif
}

template <class Stored>
FDK_HOST_DEVICE inline const Stored* vector_at(const Samples& samples, int64_t b, int64_t i) {
  return static_cast<const Stored*>(samples.data) + b * samples.batch_stride + i;
}

// Elements [i, i + V) of sample b as they are stored. V is 1, or the elements are aligned to their size together.
template <class Stored, int V>
FDK_HOST_DEVICE inline Words read_vector(const Samples& samples, int64_t b, int64_t i) {
  Words words{};
  with_type<Stored>(samples.dtype, [&](auto type) {
    using S = decltype(type);
    const S* from = vector_at<S>(samples, b, i);
    if constexpr (V == 1) {
      std::memcpy(&words, from, sizeof(S));
    } else if constexpr (V * sizeof(S) <= 16) {
      words = read_words<V * sizeof(S)>(from);
    }
  });
  return words;
}

template <class Stored, int V, class T>
FDK_HOST_DEVICE inline void widen(const Words& words, DType dtype, T (&out)[V]) {
  with_type<Stored>(dtype, [&](auto type) {
    using S = decltype(type);
    if constexpr (std::is_same_v<S, Bf16> && V % 2 == 0) {
      // A word has two values, each the upper half of a float.
      FDK_UNROLL
      for (int k = 0; k < V; k += 2) {
        out[k] = static_cast<T>(std::bit_cast<float>(words.word[k / 2] << 16));
        out[k + 1] = static_cast<T>(std::bit_cast<float>(words.word[k / 2] & 0xffff0000u));
      }
    } else if constexpr (V * sizeof(S) <= 16) {
      S stored[V];
      std::memcpy(stored, &words, sizeof(stored));
      FDK_UNROLL
      for (int k = 0; k < V; ++k) out[k] = static_cast<T>(number(stored[k]));
    }
  });
}

// Elements [i, i + W) of sample b, converted to T.
template <class Stored, int W, class T>
FDK_HOST_DEVICE inline void read(const Samples& samples, int64_t b, int64_t i, T (&out)[W]) {
  widen<Stored>(read_vector<Stored, W>(samples, b, i), samples.dtype, out);
}

// Writes W values from element `at` on, each rounded once. W is 1, or the elements are aligned to their size together.
template <class Stored, int W, class T>
FDK_HOST_DEVICE inline void write(void* to, DType dtype, int64_t at, const T (&values)[W]) {
  with_type<Stored>(dtype, [&](auto type) {
    using S = decltype(type);
    using Wide = decltype(number(S{}));
    S stored[W];
    FDK_UNROLL
    for (int k = 0; k < W; ++k) put(static_cast<Wide>(values[k]), stored[k]);
    S* out = static_cast<S*>(to) + at;
    if constexpr (W == 1) {
      *out = stored[0];
    } else if constexpr (W * sizeof(S) <= 16) {
      Words words{};
      std::memcpy(&words, stored, sizeof(stored));
      write_words<W * sizeof(S)>(words, out);
    }
  });
}

}  // namespace fdkernels
