// One thread's work on its part of a sample, for any op. `gather` loads the inputs, adds up the sums and keeps on chip
// what the gradient will need; `scatter` stores the gradient. core/cuda/schedules.cuh adds the sums of threads and
// blocks.
//
// An op provides a Math, made for one sample: its operands and its arithmetic. Math works on W elements at a time: an
// aligned vector (or kWidth elements of it), or one element where a sample ends within a vector or is not aligned.
//
//   T, Sums, Partial   type of the arithmetic; sums in double; sums of a few vectors in T
//   kVector            elements of a vector
//   kWidth             elements of a whole vector that are taken at a time
//   kInFlight          whole vectors whose loads are in flight at a time; 1 if kWidth is smaller than a vector
//   together()         whether kWidth elements may be taken at a time
//   gather<W>(at, values, partial)       adds elements at, at + 1, ... to partial; sets the values to keep on chip
//   gather_vectors<K>(v, hold, partial)  adds K whole vectors, v and this thread's next ones, and keeps their values
//   add(total, partial)                  returns false if the partial sums in T cannot be trusted
//   is_sound(total, held)                whether the sums can be used; held: no add() has returned false
//   add_carefully(again, at)             if they cannot: adds an element in double
//   merged(total, held, again)           the sums to return after that
//   stores_vectors()                     whether the gradient may be stored more than one element at a time
//   recompute<W>(at, values)             values that did not stay on chip, from inputs read again
//   store<W>(at, values)                 stores the gradient's elements
#pragma once

#include "core/share.h"
#include "core/tables.h"
#include "core/vectors.h"

namespace fdkernels {

// Vectors that a thread adds up in T before it adds to the sums in double: sixteen elements, no more. In a long running
// sum of equal numbers, each addition may round the same way.
template <class Math>
constexpr int kRun = std::max(Math::kInFlight, 16 / Math::kVector);

// Returns the sums over a part. The values of the share's first part.held vectors stay in `hold`.
template <class Math>
FDK_HOST_DEVICE inline typename Math::Sums gather(Math& math, bool aligned, const Part& part, Words* hold) {
  using T = typename Math::T;
  constexpr int V = Math::kVector, W = Math::kWidth, kInFlight = Math::kInFlight;
  const Vectors vectors = vectors_of<V>(aligned, part);
  const int whole = math.together() ? vectors.whole : 0;
  typename Math::Sums total;
  bool held = true;  // T held all partial sums; part.held counts vectors
#pragma unroll 1
  for (int first = part.thread; first < vectors.all; first += kRun<Math> * part.threads) {
    const int last = first + kRun<Math> * part.threads < vectors.all ? first + kRun<Math> * part.threads : vectors.all;
    typename Math::Partial partial;
#pragma unroll 1
    for (int v = first; v < last;) {
      if constexpr (kInFlight > 1) {
        if (v + (kInFlight - 1) * part.threads < (whole < last ? whole : last)) {
          math.template gather_vectors<kInFlight>(v, hold, partial);
          v += kInFlight * part.threads;
          continue;
        }
      }
      if (v < whole) {
        if constexpr (kInFlight > 1) {
          math.template gather_vectors<1>(v, hold, partial);
        } else {
#pragma unroll 1
          for (int at = v * V; at < v * V + V; at += W) {
            T values[W];
            math.template gather<W>(at, values, partial);
            if (v < part.held) keep<V>(hold, part.held, at, values);
          }
        }
      } else {
        for_elements<V>(part, v, [&](int at) {
          T values[1];
          math.template gather<1>(at, values, partial);
          if (v < part.held) keep<V>(hold, part.held, at, values);
        });
      }
      v += part.threads;
    }
    held = math.add(total, partial) && held;
  }
  if (math.is_sound(total, held)) return total;
  typename Math::Sums again;
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    for_elements<V>(part, v, [&](int at) { math.add_carefully(again, at); });
  }
  return math.merged(total, held, again);
}

// Stores the gradient of a part, from the values in `hold`, and beyond those from inputs that are read again.
template <class Math>
FDK_HOST_DEVICE inline void scatter(Math& math, bool aligned, const Part& part, const Words* hold) {
  using T = typename Math::T;
  constexpr int V = Math::kVector, W = Math::kWidth;
  const Vectors vectors = vectors_of<V>(aligned, part);
  const int whole = math.stores_vectors() ? vectors.whole : 0;
  const bool by_width = math.together();
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    const bool held = v < part.held;
    if (v < whole && held) {
      T values[V];
      recall<V>(hold, part.held, v * V, values);
      math.template store<V>(v * V, values);
    } else if (v < whole && by_width) {
#pragma unroll 1
      for (int at = v * V; at < v * V + V; at += W) {
        T values[W];
        math.template recompute<W>(at, values);
        math.template store<W>(at, values);
      }
    } else {
      for_elements<V>(part, v, [&](int at) {
        T values[1];
        if (held) {
          recall<V>(hold, part.held, at, values);
        } else {
          math.template recompute<1>(at, values);
        }
        math.template store<1>(at, values);
      });
    }
  }
}

}  // namespace fdkernels
