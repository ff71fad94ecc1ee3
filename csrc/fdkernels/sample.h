// What one thread does with its part of a sample: `gather` loads, sums and keeps the gradient's direction on chip,
// `scatter` stores coefficient * direction. The CUDA kernels add only how threads and blocks share their sums, so host
// tests run these very functions, thread by thread.
//
// Functions take W elements at a time: a whole, aligned vector, or one element where a sample's end or its alignment
// asks for that.
#pragma once

#include "element.h"
#include "tables.h"
#include "vectors.h"

namespace fdkernels {

// A thread's part of a block's share of a sample, in vectors: thread, thread + threads, ...
struct Part {
  int64_t begin, end;  // of the share, in elements; begin is a multiple of the vector
  int held;            // vectors of the share that stay on chip between gather and scatter
  int thread, threads;
};

// The share of block `rank` of the team that has a sample.
FDK_HOST_DEVICE inline Part part_of(int64_t elements, int64_t share, int held, int rank, int thread, int threads) {
  const int64_t begin = rank * share < elements ? rank * share : elements;
  const int64_t end = begin + share < elements ? begin + share : elements;
  return {begin, end, held, thread, threads};
}

// Vectors that a thread has in flight at a time, of calls that have x, tau and f alone.
constexpr int kInFlight = 2;
// Vectors that a thread adds in float before the sums become double: sixteen elements, since each addition to a running
// sum of equal numbers may round the same way.
template <class Ty>
constexpr int kRun = std::max(kInFlight, 16 / kVector<Ty>);
// Elements that it treats at a time of the others, whose many operands would not fit its registers.
template <class Ty>
constexpr int kGeneralWidth = sizeof(typename Ty::T) == sizeof(double) ? 1 : std::min(4, kVector<Ty>);

// ---- on chip: W elements from element `at` of the share on, in planes of 16 bytes of every vector, so that neighbours
// never meet in a bank

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

// ---- the direction of the gradient, scale c (f - tau), and the sums over it

template <class T>
struct PartialSums {
  T distance = 0, energy = 0, gap = 0;
  T reach = 0;  // of directions; that of the gap where there is neither scale table nor mask
  int kept = 0;
};

template <class T>
FDK_HOST_DEVICE inline T magnitude(T v) {
  return std::fabs(v);
}

// pred = u + g (cond - u)
template <class Stored, int W, class T>
FDK_HOST_DEVICE inline void read_guided(const Images& cond, const Images& uncond, double guidance_scale, int64_t b,
                                        int64_t i, T (&out)[W]) {
  read<Stored>(cond, b, i, out);
  if (uncond.data == nullptr) return;
  T u[W];
  read<Stored>(uncond, b, i, u);
  const T g = static_cast<T>(guidance_scale);
#pragma unroll
  for (int k = 0; k < W; ++k) out[k] = u[k] + g * (out[k] - u[k]);
}

// x - (a x_t + c tau), to the last place: at high noise a x_t and c tau are large and cancel. One product keeps what
// its rounding lost, the other is not rounded (Kahan's a b + c d: within two roundings of the result, and no
// contraction by a compiler can change it). a and c are doubles, whose rests count as well: rounded away, they would
// shift a whole sample the same way, which no mean averages out.
template <class T>
FDK_HOST_DEVICE inline T subtract_x0(T x, double a, T noisy, double c, T tau) {
  const T a_high = static_cast<T>(a), c_high = static_cast<T>(c);
  const T a_low = static_cast<T>(a - static_cast<double>(a_high)),
          c_low = static_cast<T>(c - static_cast<double>(c_high));
  const T product = c_high * tau, lost = std::fma(c_high, tau, -product);
  const T x0 = std::fma(a_high, noisy, product);
  return (x - x0) - (lost + std::fma(a_low, noisy, c_low * tau));
}

// error[k] = x - x0 of the teacher's prediction tau.
template <class Ty, bool kGeneral, int W, class T>
FDK_HOST_DEVICE inline void read_error(const Problem& p, int64_t b, int64_t i, const T (&tau)[W], T (&error)[W]) {
  read<typename Ty::Student>(p.student, b, i, error);
  if (!kGeneral || p.noisy.data == nullptr) {
#pragma unroll
    for (int k = 0; k < W; ++k) error[k] -= tau[k];
    return;
  }
  T noisy[W];
  read<typename Ty::Student>(p.noisy, b, i, noisy);
  // a and c come together, one table like the other.
  for_entries<W>(p.a, i, [&](int k, int64_t entry) {
    error[k] = subtract_x0(error[k], table_entry(p.a, b, entry), noisy[k], table_entry(p.c, b, entry), tau[k]);
  });
}

// direction[k] of elements i + k, 0 where masked; gap[k] = c (f - tau), and tau. Returns which are unmasked.
template <class Ty, bool kGeneral, int W, class T>
FDK_HOST_DEVICE inline unsigned read_direction(const Problem& p, int64_t b, int64_t i, T (&tau)[W], T (&gap)[W],
                                               T (&direction)[W]) {
  using Prediction = typename Ty::Prediction;
  if constexpr (!kGeneral) {
    read<Prediction>(p.teacher, b, i, tau);
    read<Prediction>(p.fake, b, i, gap);
#pragma unroll
    for (int k = 0; k < W; ++k) direction[k] = gap[k] -= tau[k];
    return ~0u;
  }
  read_guided<Prediction>(p.teacher, p.teacher_uncond, p.guidance_scale, b, i, tau);
  read_guided<Prediction>(p.fake, p.fake_uncond, p.fake_guidance_scale, b, i, gap);
#pragma unroll
  for (int k = 0; k < W; ++k) gap[k] -= tau[k];
  if (p.c.data != nullptr) multiply(p.c, b, i, gap);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = gap[k];
  if (has_table(p.scale)) multiply(p.scale, b, i, direction);
  const unsigned kept = kept_bits<W>(p.mask, b, i);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = kept >> k & 1 ? direction[k] : T(0);
  return kept;
}

// W elements from element `at` of the share on.
template <class Ty, bool kGeneral, int W>
FDK_HOST_DEVICE inline void gather_one(const Problem& p, int64_t b, const Part& part, int at, bool with_error,
                                       Words* hold, PartialSums<typename Ty::T>& sums) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const int64_t i = part.begin + at;
  T tau[W], gap[W], direction[W], error[W] = {};
  const unsigned bits = read_direction<Ty, kGeneral>(p, b, i, tau, gap, direction);
  if (with_error) read_error<Ty, kGeneral>(p, b, i, tau, error);
#pragma unroll
  for (int k = 0; k < W; ++k) {
    sums.energy += direction[k] * direction[k];
    if constexpr (!kGeneral) {
      sums.gap += magnitude(gap[k]);
      sums.distance += magnitude(error[k]);
    } else {
      // A masked element counts in gap and distance, unless it is not finite.
      const bool kept = bits >> k & 1;
      sums.kept += kept;
      sums.reach += magnitude(direction[k]);
      if (kept || is_finite(gap[k])) sums.gap += magnitude(gap[k]);
      if (kept || is_finite(error[k])) sums.distance += magnitude(error[k]);
    }
  }
  if (at / V < part.held) keep<V>(hold, part.held, at, direction);
}

// Where the share begins in the inputs of a call that has x, tau and f alone.
template <class Ty>
struct Rows {
  const typename Ty::Student* x;
  const typename Ty::Prediction *tau, *f;
};

// Whole vectors v, v + threads, ... of such a call: all loads before the first use. A call that reads no x has tau
// there where it can be: a condition would keep the compiler from loading x ahead.
template <class Ty, int kTogether>
FDK_HOST_DEVICE inline void gather_together(const Rows<Ty>& rows, const Part& part, int v, bool with_error, Words* hold,
                                            PartialSums<typename Ty::T>& sums) {
  using T = typename Ty::T;
  using Student = typename Ty::Student;
  using Prediction = typename Ty::Prediction;
  constexpr int V = kVector<Ty>;
  with_error = with_error || std::is_same_v<Student, Prediction>;
  Words raw_x[kTogether], raw_tau[kTogether], raw_f[kTogether];
#pragma unroll
  for (int u = 0; u < kTogether; ++u) {
    const int at = (v + u * part.threads) * V;
    raw_tau[u] = read_words<V * sizeof(Prediction)>(rows.tau + at);
    raw_f[u] = read_words<V * sizeof(Prediction)>(rows.f + at);
    raw_x[u] = with_error ? read_words<V * sizeof(Student)>(rows.x + at) : Words{};
  }
#pragma unroll
  for (int u = 0; u < kTogether; ++u) {
    T x[V], tau[V], d[V];
    widen<Prediction>(raw_tau[u], {}, tau);
    widen<Prediction>(raw_f[u], {}, d);
    widen<Student>(raw_x[u], {}, x);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      d[k] -= tau[k];
      sums.energy += d[k] * d[k];
      sums.gap += magnitude(d[k]);
      if (with_error) sums.distance += magnitude(x[k] - tau[k]);
    }
    const int w = v + u * part.threads;
    if (w < part.held) keep<V>(hold, part.held, w * V, d);
  }
}

template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline Element element(const Problem& p, int64_t b, int64_t i, bool with_error) {
  using T = typename Ty::T;
  T tau[1], f[1], x[1] = {}, noisy[1] = {};
  Element e;
  if constexpr (kGeneral) {
    read_guided<typename Ty::Prediction>(p.teacher, p.teacher_uncond, p.guidance_scale, b, i, tau);
    read_guided<typename Ty::Prediction>(p.fake, p.fake_uncond, p.fake_guidance_scale, b, i, f);
    e.keep = kept_bits<1>(p.mask, b, i) & 1;
    if (p.c.data != nullptr) e.c = table_value(p.c, b, i);
    if (has_table(p.scale)) e.scale = table_value(p.scale, b, i);
    if (with_error && p.noisy.data != nullptr) {
      read<typename Ty::Student>(p.noisy, b, i, noisy);
      e.a = table_value(p.a, b, i);
    }
  } else {
    read<typename Ty::Prediction>(p.teacher, b, i, tau);
    read<typename Ty::Prediction>(p.fake, b, i, f);
  }
  if (with_error) read<typename Ty::Student>(p.student, b, i, x);
  e.x = x[0], e.tau = tau[0], e.f = f[0], e.noisy = noisy[0];
  return e;
}

// Vectors of a share, and how many of them are whole and aligned.
struct Vectors {
  int all, whole;
};

template <int V>
FDK_HOST_DEVICE inline Vectors vectors_of(const Problem& p, const Part& part) {
  const int64_t length = part.end - part.begin;
  return {static_cast<int>((length + V - 1) / V), p.aligned ? static_cast<int>(length / V) : 0};
}

// The elements of vector v that are there.
template <int V, class Use>
FDK_HOST_DEVICE inline void for_elements(const Part& part, int v, const Use& use) {
  const int64_t length = part.end - part.begin;
#pragma unroll 1
  for (int at = v * V; at < v * V + V && at < length; ++at) use(at);
}

// The sums over a part, and its directions on chip, as far as `held` reaches.
template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline Sums gather(const Problem& p, int64_t b, const Part& part, Words* hold) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const Vectors vectors = vectors_of<V>(p, part);
  const bool with_error = p.dmd_scale || p.with_stats;
  Rows<Ty> rows;
  if constexpr (!kGeneral) {
    rows = {vector_at<typename Ty::Student>(p.student, b, part.begin),
            vector_at<typename Ty::Prediction>(p.teacher, b, part.begin),
            vector_at<typename Ty::Prediction>(p.fake, b, part.begin)};
    if constexpr (std::is_same_v<typename Ty::Student, typename Ty::Prediction>) {
      if (!with_error) rows.x = rows.tau;
    }
  }
  Sums total;
  bool sound = true;
#pragma unroll 1
  for (int first = part.thread; first < vectors.all; first += kRun<Ty> * part.threads) {
    const int last = first + kRun<Ty> * part.threads < vectors.all ? first + kRun<Ty> * part.threads : vectors.all;
    PartialSums<T> sums;
#pragma unroll 1
    for (int v = first; v < last;) {
      if constexpr (!kGeneral) {
        if (v + (kInFlight - 1) * part.threads < (vectors.whole < last ? vectors.whole : last)) {
          gather_together<Ty, kInFlight>(rows, part, v, with_error, hold, sums);
          v += kInFlight * part.threads;
          continue;
        }
      }
      if (v < vectors.whole) {
        if constexpr (kGeneral) {
#pragma unroll 1
          for (int at = v * V; at < v * V + V; at += kGeneralWidth<Ty>) {
            gather_one<Ty, true, kGeneralWidth<Ty>>(p, b, part, at, with_error, hold, sums);
          }
        } else {
          gather_together<Ty, 1>(rows, part, v, with_error, hold, sums);
        }
      } else {
        for_elements<V>(part, v, [&](int at) { gather_one<Ty, kGeneral, 1>(p, b, part, at, with_error, hold, sums); });
      }
      v += part.threads;
    }
    sound = sound && trustworthy<T>(sums.energy, sums.gap, kGeneral ? sums.reach : sums.gap);
    total.distance += sums.distance;
    total.energy += sums.energy;
    total.gap += sums.gap;
    total.kept += sums.kept;
  }
  // Where x decides no result, only figures, it decides no bit of the loss either.
  const bool as_they_are = sound && (is_finite(total.distance) || !p.dmd_scale);
  if (as_they_are && is_finite(total.distance)) return total;
  Sums again;
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    for_elements<V>(part, v, [&](int at) {
      add_carefully(again, element<Ty, kGeneral>(p, b, part.begin + at, with_error), with_error, p.dmd_scale);
    });
  }
  again.kept = total.kept;
  if (as_they_are) again.energy = total.energy, again.gap = total.gap;
  return again;
}

// ---- the gradient

// W elements from element `at` of the share on: coefficient * direction. kHeld: the direction is on chip, else its
// inputs are read again.
template <class Ty, bool kGeneral, int W, bool kHeld>
FDK_HOST_DEVICE inline void scatter_one(const Problem& p, int64_t b, const Part& part, int at, const Words* hold,
                                        typename Ty::T coefficient) {
  using T = typename Ty::T;
  const int64_t i = part.begin + at;
  T direction[W];
  if constexpr (kHeld) {
    recall<kVector<Ty>>(hold, part.held, at, direction);
  } else {
    T tau[W], gap[W];
    read_direction<Ty, kGeneral>(p, b, i, tau, gap, direction);
  }
  // Of a dropped sample 0, whatever the direction is; of a masked element too, whose direction is 0, but not times NaN.
  unsigned kept = coefficient == 0 ? 0u : ~0u;
  if (kGeneral && !is_finite(coefficient)) kept = kept_bits<W>(p.mask, b, i);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = kept >> k & 1 ? coefficient * direction[k] : T(0);
  write<typename Ty::Student>(p.gradient, p.student.dtype, b * p.elements + i, direction);
}

template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline void scatter(const Problem& p, int64_t b, const Part& part, const Words* hold,
                                    double coefficient) {
  constexpr int V = kVector<Ty>, W = kGeneral ? kGeneralWidth<Ty> : V;
  const Vectors vectors = vectors_of<V>(p, part);
  const auto w = static_cast<typename Ty::T>(coefficient);
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    const bool held = v < part.held;
    if (v < vectors.whole && held) {
      scatter_one<Ty, kGeneral, V, true>(p, b, part, v * V, hold, w);
    } else if (v < vectors.whole) {
#pragma unroll 1
      for (int at = v * V; at < v * V + V; at += W) scatter_one<Ty, kGeneral, W, false>(p, b, part, at, hold, w);
    } else if (held) {
      for_elements<V>(part, v, [&](int at) { scatter_one<Ty, kGeneral, 1, true>(p, b, part, at, hold, w); });
    } else {
      for_elements<V>(part, v, [&](int at) { scatter_one<Ty, kGeneral, 1, false>(p, b, part, at, hold, w); });
    }
  }
}

}  // namespace fdkernels
