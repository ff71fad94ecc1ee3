// What one thread does with its part of a sample: `gather` loads, sums and keeps the gradient's direction on chip,
// `scatter` stores coefficient * direction. The CUDA kernels add how threads and blocks share their sums.
//
// Functions take W elements at a time: a whole, aligned vector, or one element where a sample's end or its alignment
// asks for that.
#pragma once

#include "element.h"
#include "share.h"
#include "tables.h"
#include "vectors.h"

namespace fdkernels {

// Vectors that a thread has in flight at a time, of calls that have x, tau and f alone.
constexpr int kInFlight = 2;
// Vectors that a thread adds in float before the sums become double: sixteen elements, since each addition to a running
// sum of equal numbers may round the same way.
template <class Ty>
constexpr int kRun = std::max(kInFlight, 16 / kVector<Ty>);
// Elements that it treats at a time of the others, whose many operands would not fit its registers.
template <class Ty>
constexpr int kGeneralWidth = sizeof(typename Ty::T) == sizeof(double) ? 1 : std::min(4, kVector<Ty>);

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

// The inputs of a call at element `begin` of sample b. Where their types are known, these are the share's own
// addresses, and what a call lacks is another input that changes nothing: conditions would keep loads apart. Where
// types are looked up, registers have no room for that, and what is absent reads as 0.
struct Rows {
  Images x, noisy, tau, tau_uncond, f, f_uncond;
  int64_t b = 0, begin = 0;
};

template <class Ty>
constexpr bool kTyped = !std::is_same_v<typename Ty::Student, AnyType>;

// Whether x and x_t are read: always, where they can be tau instead.
template <class Ty>
FDK_HOST_DEVICE inline bool loads_error(bool with_error) {
  return with_error || (kTyped<Ty> && std::is_same_v<typename Ty::Student, typename Ty::Prediction>);
}

template <class Ty>
FDK_HOST_DEVICE inline Rows rows_of(const Problem& p, int64_t b, int64_t begin, bool with_error) {
  if constexpr (kTyped<Ty>) {
    const auto row = [&](const Images& images, int bytes) {
      const int64_t at = (b * images.batch_stride + begin) * bytes;
      return Images{static_cast<const char*>(images.data) + at, images.dtype, 0};
    };
    constexpr int kStudent = sizeof(typename Ty::Student), kPrediction = sizeof(typename Ty::Prediction);
    Rows rows;
    rows.tau = row(p.teacher, kPrediction);
    rows.f = row(p.fake, kPrediction);
    rows.x = with_error || !loads_error<Ty>(false) ? row(p.student, kStudent) : rows.tau;
    rows.noisy = with_error && p.noisy.data != nullptr ? row(p.noisy, kStudent) : rows.x;
    rows.tau_uncond = p.teacher_uncond.data != nullptr ? row(p.teacher_uncond, kPrediction) : rows.tau;
    rows.f_uncond = p.fake_uncond.data != nullptr ? row(p.fake_uncond, kPrediction) : rows.f;
    return rows;
  } else {
    return {p.student, p.noisy, p.teacher, p.teacher_uncond, p.fake, p.fake_uncond, b, begin};
  }
}

template <class Stored, int W>
FDK_HOST_DEVICE inline Words read_row(const Rows& rows, const Images& row, int at) {
  if (std::is_same_v<Stored, AnyType> && row.data == nullptr) return {};
  return read_vector<Stored, W>(row, rows.b, rows.begin + at);
}

// x0 = a x_t + c prediction: a and c of a run of elements, each in two parts.
template <class T>
struct Coefficients {
  T a = 0, a_rest = 0, c = 1, c_rest = 0;
};

template <class T>
FDK_HOST_DEVICE inline Coefficients<T> coefficients_at(const Problem& p, int64_t b, int64_t i) {
  Coefficients<T> k;
  if (p.c.data == nullptr) return k;
  const int64_t entry = place_of(p.c, i).entry;  // a and c come together, one table like the other
  const double c = table_entry(p.c, b, entry), a = p.a.data == nullptr ? 0.0 : table_entry(p.a, b, entry);
  k.a = static_cast<T>(a), k.c = static_cast<T>(c);
  if constexpr (sizeof(T) < sizeof(double)) {
    k.a_rest = static_cast<T>(a - static_cast<double>(k.a)), k.c_rest = static_cast<T>(c - static_cast<double>(k.c));
  }
  return k;
}

// Of a whole sample, where it has one pair.
template <class T>
FDK_HOST_DEVICE inline Coefficients<T> coefficients_of(const Problem& p, int64_t b) {
  return p.c.entries == 1 ? coefficients_at<T>(p, b, 0) : Coefficients<T>{};
}

// Whether W elements of a whole vector can be taken together: where they share their coefficients.
template <bool kGeneral, int W>
FDK_HOST_DEVICE inline bool together(const Problem& p) {
  return W > 1 && (!kGeneral || p.c.entries == 1 || p.c.inner % W == 0);
}

// x - (a x_t + c tau), to the last place: at high noise a x_t and c tau are large and cancel. One product keeps what
// its rounding lost, the other is not rounded (Kahan's a b + c d: within two roundings of the result, and no
// contraction by a compiler can change it). a and c are doubles, whose rests count as well: rounded away, they would
// shift a whole sample the same way, which no mean averages out.
template <class T>
FDK_HOST_DEVICE inline T subtract_x0(T x, T noisy, T tau, const Coefficients<T>& k) {
  const T product = k.c * tau, lost = std::fma(k.c, tau, -product);
  const T x0 = std::fma(k.a, noisy, product);
  return (x - x0) - (lost + std::fma(k.a_rest, noisy, k.c_rest * tau));
}

// pred = u + g (cond - u)
template <class Stored, int W, class T>
FDK_HOST_DEVICE inline void widen_guided(const Words& cond, const Words& uncond, const Images& row, const Images& other,
                                         T g, T (&out)[W]) {
  T u[W];
  widen<Stored>(cond, row.dtype, out);
  widen<Stored>(uncond, other.dtype, u);
#pragma unroll
  for (int k = 0; k < W; ++k) out[k] = u[k] + g * (out[k] - u[k]);
}

// direction[k] of elements at + k, 0 where masked; gap[k] = c (f - tau), and tau. Returns which are unmasked. The
// coefficients come as the sample's; where they change within it, they become those of these elements.
template <class Ty, bool kGeneral, int W, class T>
FDK_HOST_DEVICE inline unsigned read_direction(const Problem& p, const Rows& rows, int64_t b, int64_t i, int at,
                                               Coefficients<T>& coefficients, T (&tau)[W], T (&gap)[W],
                                               T (&direction)[W]) {
  using Prediction = typename Ty::Prediction;
  const Words raw_tau = read_row<Prediction, W>(rows, rows.tau, at), raw_f = read_row<Prediction, W>(rows, rows.f, at);
  if constexpr (!kGeneral) {
    widen<Prediction>(raw_tau, rows.tau.dtype, tau);
    widen<Prediction>(raw_f, rows.f.dtype, gap);
#pragma unroll
    for (int k = 0; k < W; ++k) direction[k] = gap[k] -= tau[k];
    return ~0u;
  }
  const Words raw_tau_uncond = read_row<Prediction, W>(rows, rows.tau_uncond, at);
  const Words raw_f_uncond = read_row<Prediction, W>(rows, rows.f_uncond, at);
  const unsigned kept = kept_bits<W>(p.mask, b, i);
  if (p.c.entries > 1) coefficients = coefficients_at<T>(p, b, i);
  const T g = p.teacher_uncond.data == nullptr ? T(1) : static_cast<T>(p.guidance_scale);
  const T fake_g = p.fake_uncond.data == nullptr ? T(1) : static_cast<T>(p.fake_guidance_scale);
  widen_guided<Prediction>(raw_tau, raw_tau_uncond, rows.tau, rows.tau_uncond, g, tau);
  widen_guided<Prediction>(raw_f, raw_f_uncond, rows.f, rows.f_uncond, fake_g, gap);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = gap[k] = coefficients.c * (gap[k] - tau[k]);
  if (has_table(p.scale)) multiply(p.scale, b, i, direction);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = kept >> k & 1 ? direction[k] : T(0);
  return kept;
}

// W elements from element `at` of the share on.
template <class Ty, bool kGeneral, int W, class T>
FDK_HOST_DEVICE inline void gather_one(const Problem& p, const Rows& rows, int64_t b, const Part& part, int at,
                                       bool with_error, Coefficients<T> coefficients, Words* hold,
                                       PartialSums<T>& sums) {
  using Student = typename Ty::Student;
  constexpr int V = kVector<Ty>;
  T x[W], tau[W], gap[W], direction[W];
  Words raw_x{}, raw_noisy{};
  const auto load_error = [&] {
    if (!loads_error<Ty>(with_error)) return;
    raw_x = read_row<Student, W>(rows, rows.x, at);
    if constexpr (kGeneral) raw_noisy = read_row<Student, W>(rows, rows.noisy, at);
  };
  if constexpr (kTyped<Ty>) load_error();
  const unsigned bits =
      read_direction<Ty, kGeneral>(p, rows, b, part.begin + at, at, coefficients, tau, gap, direction);
  if constexpr (!kTyped<Ty>) load_error();  // they would not fit the registers beside the others
  widen<Student>(raw_x, rows.x.dtype, x);
  if constexpr (!kGeneral) {
#pragma unroll
    for (int k = 0; k < W; ++k) {
      sums.energy += direction[k] * direction[k];
      sums.gap += magnitude(gap[k]);
      if (with_error) sums.distance += magnitude(x[k] - tau[k]);
    }
  } else {
    T noisy[W];
    widen<Student>(raw_noisy, rows.noisy.dtype, noisy);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const bool kept = bits >> k & 1;
      sums.energy += direction[k] * direction[k];
      sums.kept += kept;
      sums.reach += magnitude(direction[k]);
      // A masked element counts in gap and distance, unless it is not finite.
      if (kept || is_finite(gap[k])) sums.gap += magnitude(gap[k]);
      const T error = with_error ? subtract_x0(x[k], noisy[k], tau[k], coefficients) : T(0);
      if (kept || is_finite(error)) sums.distance += magnitude(error);
    }
  }
  if (at / V < part.held) keep<V>(hold, part.held, at, direction);
}

// Whole vectors v, v + threads, ... of a call that has x, tau and f alone: all loads before the first use.
template <class Ty, int kTogether>
FDK_HOST_DEVICE inline void gather_together(const Rows& rows, const Part& part, int v, bool with_error, Words* hold,
                                            PartialSums<typename Ty::T>& sums) {
  using T = typename Ty::T;
  using Student = typename Ty::Student;
  using Prediction = typename Ty::Prediction;
  constexpr int V = kVector<Ty>;
  with_error = loads_error<Ty>(with_error);
  Words raw_x[kTogether], raw_tau[kTogether], raw_f[kTogether];
#pragma unroll
  for (int u = 0; u < kTogether; ++u) {
    const int at = (v + u * part.threads) * V;
    raw_tau[u] = read_row<Prediction, V>(rows, rows.tau, at);
    raw_f[u] = read_row<Prediction, V>(rows, rows.f, at);
    raw_x[u] = with_error ? read_row<Student, V>(rows, rows.x, at) : Words{};
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
    const auto guided = [&](const Images& cond, const Images& uncond, double scale, T(&out)[1]) {
      read<typename Ty::Prediction>(cond, b, i, out);
      if (uncond.data == nullptr) return;
      T u[1];
      read<typename Ty::Prediction>(uncond, b, i, u);
      out[0] = u[0] + static_cast<T>(scale) * (out[0] - u[0]);
    };
    guided(p.teacher, p.teacher_uncond, p.guidance_scale, tau);
    guided(p.fake, p.fake_uncond, p.fake_guidance_scale, f);
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

// The sums over a part, and its directions on chip, as far as `held` reaches.
template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline Sums gather(const Problem& p, int64_t b, const Part& part, Words* hold) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const Vectors vectors = vectors_of<V>(p, part);
  const bool with_error = p.dmd_scale || p.with_stats;
  const Rows rows = rows_of<Ty>(p, b, part.begin, with_error);
  const auto coefficients = coefficients_of<T>(p, b);
  const int whole = together<kGeneral, kGeneral ? kGeneralWidth<Ty> : V>(p) ? vectors.whole : 0;
  Sums total;
  bool sound = true;
#pragma unroll 1
  for (int first = part.thread; first < vectors.all; first += kRun<Ty> * part.threads) {
    const int last = first + kRun<Ty> * part.threads < vectors.all ? first + kRun<Ty> * part.threads : vectors.all;
    PartialSums<T> sums;
#pragma unroll 1
    for (int v = first; v < last;) {
      if constexpr (!kGeneral) {
        if (v + (kInFlight - 1) * part.threads < (whole < last ? whole : last)) {
          gather_together<Ty, kInFlight>(rows, part, v, with_error, hold, sums);
          v += kInFlight * part.threads;
          continue;
        }
      }
      if (v < whole) {
        if constexpr (kGeneral) {
#pragma unroll 1
          for (int at = v * V; at < v * V + V; at += kGeneralWidth<Ty>) {
            gather_one<Ty, true, kGeneralWidth<Ty>>(p, rows, b, part, at, with_error, coefficients, hold, sums);
          }
        } else {
          gather_together<Ty, 1>(rows, part, v, with_error, hold, sums);
        }
      } else {
        for_elements<V>(part, v, [&](int at) {
          gather_one<Ty, kGeneral, 1>(p, rows, b, part, at, with_error, coefficients, hold, sums);
        });
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

// W elements from element `at` of the share on: coefficient * direction. A direction that is not on chip is computed of
// inputs that are read again.
template <class Ty, bool kGeneral, int W, class T>
FDK_HOST_DEVICE inline void scatter_one(const Problem& p, const Rows& rows, int64_t b, const Part& part, int at,
                                        bool held, const Words* hold, Coefficients<T> coefficients, T coefficient) {
  const int64_t i = part.begin + at;
  T direction[W];
  if (held) {
    recall<kVector<Ty>>(hold, part.held, at, direction);
  } else {
    T tau[W], gap[W];
    read_direction<Ty, kGeneral>(p, rows, b, i, at, coefficients, tau, gap, direction);
  }
  // Of a dropped sample 0, whatever the direction is; of a masked element too, whose direction is 0, but not times NaN.
  unsigned kept = coefficient == 0 ? 0u : ~0u;
  if (kGeneral && W == 1 && !is_finite(coefficient)) kept = kept_bits<W>(p.mask, b, i);
#pragma unroll
  for (int k = 0; k < W; ++k) direction[k] = kept >> k & 1 ? coefficient * direction[k] : T(0);
  write<typename Ty::Student>(p.gradient, p.student.dtype, b * p.elements + i, direction);
}

template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline void scatter(const Problem& p, int64_t b, const Part& part, const Words* hold,
                                    double coefficient) {
  constexpr int V = kVector<Ty>, W = kGeneral ? kGeneralWidth<Ty> : V;
  const Vectors vectors = vectors_of<V>(p, part);
  const Rows rows = rows_of<Ty>(p, b, part.begin, false);
  const auto coefficients = coefficients_of<typename Ty::T>(p, b);
  const auto w = static_cast<typename Ty::T>(coefficient);
  // Where the coefficient is not finite, each element asks for its mask.
  const int whole = !kGeneral || is_finite(w) ? vectors.whole : 0;
  const bool by_width = together<kGeneral, W>(p);
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    const bool held = v < part.held;
    if (v < whole && held) {
      scatter_one<Ty, kGeneral, V>(p, rows, b, part, v * V, true, hold, coefficients, w);
    } else if (v < whole && by_width) {
#pragma unroll 1
      for (int at = v * V; at < v * V + V; at += W)
        scatter_one<Ty, kGeneral, W>(p, rows, b, part, at, false, hold, coefficients, w);
    } else {
      for_elements<V>(part, v,
                      [&](int at) { scatter_one<Ty, kGeneral, 1>(p, rows, b, part, at, held, hold, coefficients, w); });
    }
  }
}

}  // namespace fdkernels
