// A block's share: the elements of a sample that one block of its team takes. This file says which of them each thread
// takes, and where their values stay on chip ("held").
#pragma once

#include <cstring>

#include "core/vectors.h"

namespace fdkernels {

// A thread's part of its block's share: vectors thread, thread + threads, ...
struct Part {
  int64_t begin, end;  // of the share, in elements; begin is a multiple of the vector
  int held;            // the share's first vectors, which stay on chip between gather and scatter
  int thread, threads;
};

// A thread's part of the share of block `rank` in its team.
FDK_HOST_DEVICE inline Part part_of(int64_t elements, int64_t share, int held, int rank, int thread, int threads) {
  const int64_t begin = rank * share < elements ? rank * share : elements;
  const int64_t end = begin + share < elements ? begin + share : elements;
  return {begin, end, held, thread, threads};
}

// A share's number of vectors, and how many of them are whole and aligned.
struct Vectors {
  int all, whole;
};

template <int V>
FDK_HOST_DEVICE inline Vectors vectors_of(bool aligned, const Part& part) {
  const int64_t length = part.end - part.begin;
  return {static_cast<int>((length + V - 1) / V), aligned ? static_cast<int>(length / V) : 0};
}

// Calls use(at) for the elements of vector v that lie in the share.
template <int V, class Use>
FDK_HOST_DEVICE inline void for_elements(const Part& part, int v, const Use& use) {
  const int64_t length = part.end - part.begin;
#pragma unroll 1
  for (int at = v * V; at < v * V + V && at < length; ++at) use(at);
}

// ---- on chip: the values of W elements from element `at` of the share on. Plane j of `hold` has the j-th 16 bytes of
// every vector: threads that take neighboring vectors access neighboring 16 bytes, without bank conflicts.

template <int V, int W, class T>
FDK_HOST_DEVICE inline void keep(Words* hold, int held, int at, const T (&values)[W]) {
  constexpr int kInPlane = 16 / sizeof(T);
  Words* plane = hold + at % V / kInPlane * held + at / V;
  if constexpr (W == 1) {
    reinterpret_cast<T*>(plane)[at % kInPlane] = values[0];
  } else {
    Words planes[W / kInPlane];
    std::memcpy(planes, values, sizeof(planes));
#pragma unroll
    for (int j = 0; j < W / kInPlane; ++j) plane[j * held] = planes[j];
  }
}

template <int V, int W, class T>
FDK_HOST_DEVICE inline void recall(const Words* hold, int held, int at, T (&values)[W]) {
  constexpr int kInPlane = 16 / sizeof(T);
  const Words* plane = hold + at % V / kInPlane * held + at / V;
  if constexpr (W == 1) {
    values[0] = reinterpret_cast<const T*>(plane)[at % kInPlane];
  } else {
    Words planes[W / kInPlane];
#pragma unroll
    for (int j = 0; j < W / kInPlane; ++j) planes[j] = plane[j * held];
    std::memcpy(values, planes, sizeof(planes));
  }
}

// The same for kEach values of every element, one after the other: those of all elements come first, then the next.
template <int V, int kEach, int N, class T>
FDK_HOST_DEVICE inline void keep_each(Words* hold, int held, int at, const T (&values)[N]) {
  constexpr int W = N / kEach, kPlanes = V * static_cast<int>(sizeof(T)) / 16;
  if constexpr (kEach == 1) {
    keep<V>(hold, held, at, values);
  } else {
    FDK_UNROLL
    for (int each = 0; each < kEach; ++each) {
      T own[W];
      FDK_UNROLL
      for (int n = 0; n < W; ++n) own[n] = values[each * W + n];
      keep<V>(hold + each * kPlanes * held, held, at, own);
    }
  }
}

template <int V, int kEach, int N, class T>
FDK_HOST_DEVICE inline void recall_each(const Words* hold, int held, int at, T (&values)[N]) {
  constexpr int W = N / kEach, kPlanes = V * static_cast<int>(sizeof(T)) / 16;
  if constexpr (kEach == 1) {
    recall<V>(hold, held, at, values);
  } else {
    FDK_UNROLL
    for (int each = 0; each < kEach; ++each) {
      T own[W];
      recall<V>(hold + each * kPlanes * held, held, at, own);
      FDK_UNROLL
      for (int n = 0; n < W; ++n) values[each * W + n] = own[n];
    }
  }
}

}  // namespace fdkernels
