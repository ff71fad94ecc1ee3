// What one thread does with its part of a sample, whatever the op: `gather` loads, sums and keeps on chip what the
// gradient will need; `scatter` stores the gradient. The CUDA kernels add how threads and blocks share their sums.
//
// An op's Math holds one sample's operands and says what an element adds and becomes. It works on W elements at a time:
// a whole, aligned vector, or one element where a sample's end or its alignment asks for that. Math has
//
//   T, Sums, Partial   type of the arithmetic; sums in double; sums of a few vectors in T
//   kVector            elements of a vector
//   kWidth             elements of a whole vector that are gathered at a time
//   kInFlight          whole vectors whose loads are in flight at a time; 1 where kWidth is smaller than a vector
//   together()         whether kWidth elements may be taken together
//   gather<W>(at, values, partial)     adds elements at, ..., and returns what stays on chip of them
//   gather_vectors<K>(v, keep, partial)  the same of K whole vectors, v and those of this thread after it
//   add(sums, partial)                 false where T did not hold the partial sums
//   is_sound(sums, held), add_carefully(sums, at)   else element by element in double
//   recompute<W>(at, values)           what was not kept
//   store<W>(at, values)               the gradient's elements
#pragma once

#include "core/share.h"
#include "core/tables.h"
#include "core/vectors.h"

namespace fdkernels {

// Vectors that a thread adds in float before the sums become double: sixteen elements, since each addition to a running
// sum of equal numbers may round the same way.
template <class Math>
constexpr int kRun = std::max(Math::kInFlight, 16 / Math::kVector);

// The sums over a part, and what stays on chip, as far as `held` reaches.
template <class Math>
FDK_HOST_DEVICE inline typename Math::Sums gather(Math& math, bool aligned, const Part& part, Words* hold) {
  using T = typename Math::T;
  constexpr int V = Math::kVector, W = Math::kWidth, kInFlight = Math::kInFlight;
  const Vectors vectors = vectors_of<V>(aligned, part);
  const int whole = math.together() ? vectors.whole : 0;
  typename Math::Sums total;
  bool held = true;
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

// The gradient of a part: of what stays on chip, and of the rest computed of inputs that are read again.
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
