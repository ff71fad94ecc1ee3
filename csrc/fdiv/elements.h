// The flagship's math on the elements of a sample, as core/sample.h asks for it. A thread keeps each element's
// direction m c (f - tau) on chip, with m the multiplier where that varies within a sample; its gradient is w / N times
// that.
#pragma once

#include "core/sample.h"
#include "fdiv/math.h"

namespace fdkernels {

// x0 = a x_t + c prediction: a and c of a run of elements, each in two parts of T.
template <class T>
struct Coefficients {
  T a = 0, a_rest = 0, c = 1, c_rest = 0;
};

// x - (a x_t + c tau), to the last place: at high noise a x_t and c tau are large and cancel. One product keeps what
// its rounding lost, the other is not rounded (Kahan's a b + c d: within two roundings of the result, and no
// contraction by a compiler can change it). The rests of a and c count as well: rounded away, they would shift a whole
// sample the same way, which no mean averages out.
template <class T>
FDK_HOST_DEVICE inline T subtract_x0(T x, T noisy, T tau, const Coefficients<T>& k) {
  const T product = k.c * tau, lost = std::fma(k.c, tau, -product);
  const T x0 = std::fma(k.a, noisy, product);
  return (x - x0) - (lost + std::fma(k.a_rest, noisy, k.c_rest * tau));
}

template <class T>
FDK_HOST_DEVICE inline T magnitude(T v) {
  return std::fabs(v);
}

// Called: what a thread looks up once a run waits longer for code than for arithmetic.
FDK_HOST_DEVICE FDK_CALLED Map map_at(const Problem& p, int64_t b, int64_t i) {
  return coefficients_of(p.prediction, table_value(p.alpha, b, i), table_value(p.sigma, b, i), p.sigma_data);
}

// The end of the run of levels around element `at` of a share that begins at `begin` and has `length` elements.
FDK_HOST_DEVICE FDK_CALLED int run_end(const Problem& p, int64_t begin, int at, int length) {
  for (const Table* table : {&p.alpha, &p.sigma}) {
    if (table->entries == 1) continue;
    const int64_t end = at + table->inner - place_of(*table, begin + at).within;
    if (end < length) length = static_cast<int>(end);
  }
  return length;
}

// The inputs of a call at element `begin` of sample b. Where their types are known, these are the share's own
// addresses, and what a call lacks is another input that changes nothing: conditions would keep loads apart. Where
// types are looked up, registers have no room for that, and what is absent reads as 0.
struct Rows {
  Samples x, noisy, tau, tau_uncond, f, f_uncond;
  int64_t b = 0, begin = 0;
};

template <class Ty, bool kGeneral>
struct FdivMath {
  using T = typename Ty::T;
  using Student = typename Ty::Student;
  using Prediction = typename Ty::Prediction;
  using Sums = fdkernels::Sums;

  struct Partial {
    T distance = 0, energy = 0, gap = 0;
    T reach = 0;  // of directions; that of the gap where there is neither multiplier nor mask
    int kept = 0;
  };

  static constexpr bool kTyped = !std::is_same_v<Student, AnyType>;
  static constexpr int kVector = fdkernels::kVector<Ty>;
  // Of calls with more than x, tau and f, whose many operands would not fit the registers of a thread otherwise.
  static constexpr int kWidth = !kGeneral ? kVector : sizeof(T) == sizeof(double) ? 1 : std::min(4, kVector);
  static constexpr int kInFlight = kGeneral ? 1 : 2;

  const Problem& p;
  const int64_t b;
  const Part& part;
  const bool with_error;  // x is read: for the dmd scale, or for figures
  const Rows rows;
  Coefficients<T> k;
  int end = 0;              // of the elements that k belongs to
  const T coefficient = 0;  // w / N, of a scatter

  // A gather.
  FDK_HOST_DEVICE FdivMath(const Problem& problem, int64_t sample, const Part& share)
      : p(problem),
        b(sample),
        part(share),
        with_error(problem.dmd_scale || problem.with_stats),
        rows(rows_of(with_error)) {}

  // A scatter.
  FDK_HOST_DEVICE FdivMath(const Problem& problem, int64_t sample, const Part& share, double weight)
      : p(problem),
        b(sample),
        part(share),
        with_error(false),
        rows(rows_of(false)),
        coefficient(static_cast<T>(weight)) {}

  // ---- operands

  // Whether x and x_t are loaded: always, where they can be tau instead.
  FDK_HOST_DEVICE bool loads_error() const {
    return with_error || (kTyped && std::is_same_v<Student, Prediction>);
  }

  FDK_HOST_DEVICE Rows rows_of(bool reads_x) const {
    if constexpr (kTyped) {
      const auto row = [&](const Samples& samples, int bytes) {
        const int64_t at = (b * samples.batch_stride + part.begin) * bytes;
        return Samples{static_cast<const char*>(samples.data) + at, samples.dtype, 0};
      };
      constexpr int kStudent = sizeof(Student), kPrediction = sizeof(Prediction);
      constexpr bool kCanBeTau = std::is_same_v<Student, Prediction>;
      Rows at;
      at.tau = row(p.teacher, kPrediction);
      at.f = row(p.fake, kPrediction);
      at.x = reads_x || !kCanBeTau ? row(p.student, kStudent) : at.tau;
      at.noisy = reads_x && p.noisy.data != nullptr ? row(p.noisy, kStudent) : at.x;
      at.tau_uncond = p.teacher_uncond.data != nullptr ? row(p.teacher_uncond, kPrediction) : at.tau;
      at.f_uncond = p.fake_uncond.data != nullptr ? row(p.fake_uncond, kPrediction) : at.f;
      return at;
    } else {
      return {p.student, p.noisy, p.teacher, p.teacher_uncond, p.fake, p.fake_uncond, b, part.begin};
    }
  }

  template <class Stored, int W>
  FDK_HOST_DEVICE Words read_row(const Samples& row, int at) const {
    if (std::is_same_v<Stored, AnyType> && row.data == nullptr) return {};
    return read_vector<Stored, W>(row, rows.b, rows.begin + at);
  }

  // k of the run around element `at` of the share.
  FDK_HOST_DEVICE void look_up(int at) {
    end = run_end(p, part.begin, at, static_cast<int>(part.end - part.begin));
    if (!p.is_raw()) return;
    const Map map = map_at(p, b, part.begin + at);
    const double a = p.noisy.data == nullptr ? 0.0 : map.a, c = map.c;
    k.a = static_cast<T>(a), k.c = static_cast<T>(c);
    if constexpr (sizeof(T) < sizeof(double)) {
      k.a_rest = static_cast<T>(a - static_cast<double>(k.a)), k.c_rest = static_cast<T>(c - static_cast<double>(k.c));
    }
  }

  FDK_HOST_DEVICE bool together() const {
    if (!kGeneral || kWidth == 1) return kWidth > 1;
    return (p.alpha.entries == 1 || p.alpha.inner % kWidth == 0) &&
           (p.sigma.entries == 1 || p.sigma.inner % kWidth == 0);
  }

  template <int W>
  FDK_HOST_DEVICE static void widen_guided(const Words& cond, const Words& uncond, const Samples& row,
                                           const Samples& other, T g, T (&out)[W]) {
    T u[W];
    widen<Prediction>(cond, row.dtype, out);
    widen<Prediction>(uncond, other.dtype, u);
#pragma unroll
    for (int n = 0; n < W; ++n) out[n] = guided(out[n], u[n], g);
  }

  // direction[n] of elements at + n, 0 where masked; gap[n] = c (f - tau), and tau. Returns which are unmasked.
  template <int W>
  FDK_HOST_DEVICE unsigned read_direction(int at, T (&tau)[W], T (&gap)[W], T (&direction)[W]) {
    const int64_t i = part.begin + at;
    const Words raw_tau = read_row<Prediction, W>(rows.tau, at), raw_f = read_row<Prediction, W>(rows.f, at);
    if constexpr (!kGeneral) {
      widen<Prediction>(raw_tau, rows.tau.dtype, tau);
      widen<Prediction>(raw_f, rows.f.dtype, gap);
#pragma unroll
      for (int n = 0; n < W; ++n) direction[n] = gap[n] -= tau[n];
      return ~0u;
    }
    const Words raw_tau_uncond = read_row<Prediction, W>(rows.tau_uncond, at);
    const Words raw_f_uncond = read_row<Prediction, W>(rows.f_uncond, at);
    const unsigned kept = kept_bits<W>(p.mask, b, i);
    if (at >= end) look_up(at);  // a thread passes its elements in their order
    const T g = p.teacher_uncond.data == nullptr ? T(1) : static_cast<T>(p.guidance_scale);
    const T fake_g = p.fake_uncond.data == nullptr ? T(1) : static_cast<T>(p.fake_guidance_scale);
    widen_guided(raw_tau, raw_tau_uncond, rows.tau, rows.tau_uncond, g, tau);
    widen_guided(raw_f, raw_f_uncond, rows.f, rows.f_uncond, fake_g, gap);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = gap[n] = k.c * (gap[n] - tau[n]);
    if (has_table(p.multiplier)) multiply(p.multiplier, b, i, direction);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = kept >> n & 1 ? direction[n] : T(0);
    return kept;
  }

  // ---- sums

  template <int W>
  FDK_HOST_DEVICE void gather(int at, T (&direction)[W], Partial& sums) {
    T x[W], tau[W], gap[W];
    Words raw_x{}, raw_noisy{};
    const auto load_error = [&] {
      if (!loads_error()) return;
      raw_x = read_row<Student, W>(rows.x, at);
      if constexpr (kGeneral) raw_noisy = read_row<Student, W>(rows.noisy, at);
    };
    if constexpr (kTyped) load_error();
    const unsigned bits = read_direction(at, tau, gap, direction);
    if constexpr (!kTyped) load_error();  // they would not fit the registers beside the others
    widen<Student>(raw_x, rows.x.dtype, x);
    if constexpr (!kGeneral) {
      add_plain(x, tau, direction, with_error, sums);
    } else {
      T noisy[W];
      widen<Student>(raw_noisy, rows.noisy.dtype, noisy);
#pragma unroll
      for (int n = 0; n < W; ++n) {
        const bool kept = bits >> n & 1;
        sums.energy += direction[n] * direction[n];
        sums.kept += kept;
        sums.reach += magnitude(direction[n]);
        // A masked element counts in gap and distance, unless it is not finite.
        if (kept || (!p.kept_only && is_finite(gap[n]))) sums.gap += magnitude(gap[n]);
        const T error = with_error ? subtract_x0(x[n], noisy[n], tau[n], k) : T(0);
        if (kept || (!p.kept_only && is_finite(error))) sums.distance += magnitude(error);
      }
    }
  }

  template <int W>
  FDK_HOST_DEVICE static void add_plain(const T (&x)[W], const T (&tau)[W], const T (&gap)[W], bool has_x,
                                        Partial& sums) {
#pragma unroll
    for (int n = 0; n < W; ++n) {
      sums.energy += gap[n] * gap[n];
      sums.gap += magnitude(gap[n]);
      if (has_x) sums.distance += magnitude(x[n] - tau[n]);
    }
  }

  // Whole vectors v, v + threads, ... of a call that has x, tau and f alone: all loads before the first use.
  template <int kTogether>
  FDK_HOST_DEVICE void gather_vectors(int v, Words* hold, Partial& sums) const {
    constexpr int V = kVector;
    Words raw_x[kTogether], raw_tau[kTogether], raw_f[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int at = (v + u * part.threads) * V;
      raw_tau[u] = read_row<Prediction, V>(rows.tau, at);
      raw_f[u] = read_row<Prediction, V>(rows.f, at);
      raw_x[u] = loads_error() ? read_row<Student, V>(rows.x, at) : Words{};
    }
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      T x[V], tau[V], d[V];
      widen<Prediction>(raw_tau[u], {}, tau);
      widen<Prediction>(raw_f[u], {}, d);
      widen<Student>(raw_x[u], {}, x);
#pragma unroll
      for (int n = 0; n < V; ++n) d[n] -= tau[n];
      add_plain(x, tau, d, loads_error(), sums);
      const int w = v + u * part.threads;
      if (w < part.held) keep<V>(hold, part.held, w * V, d);
    }
  }

  // False where T did not hold the partial sums.
  FDK_HOST_DEVICE bool add(Sums& total, const Partial& sums) const {
    total.distance += sums.distance;
    total.energy += sums.energy;
    total.gap += sums.gap;
    total.kept += sums.kept;
    return trustworthy<T>(sums.energy, sums.gap, kGeneral ? sums.reach : sums.gap);
  }

  FDK_HOST_DEVICE bool is_sound(const Sums& total, bool held) const {
    return held && is_finite(total.distance);
  }

  FDK_HOST_DEVICE void add_carefully(Sums& total, int at) const {
    fdkernels::add_carefully(total, element(part.begin + at), p, with_error);
  }

  // x is read for figures alone where there is no dmd scale: the loss must not depend on it.
  FDK_HOST_DEVICE Sums merged(const Sums& total, bool held, Sums again) const {
    again.kept = total.kept;
    if (held && !p.dmd_scale) again.energy = total.energy, again.gap = total.gap;
    return again;
  }

  FDK_HOST_DEVICE Element element(int64_t i) const {
    T tau[1], f[1], x[1] = {}, noisy[1] = {};
    Element e;
    if constexpr (kGeneral) {
      const auto read_guided = [&](const Samples& cond, const Samples& uncond, double scale, T(&out)[1]) {
        read<Prediction>(cond, b, i, out);
        if (uncond.data == nullptr) return;
        T u[1];
        read<Prediction>(uncond, b, i, u);
        out[0] = guided(out[0], u[0], static_cast<T>(scale));
      };
      read_guided(p.teacher, p.teacher_uncond, p.guidance_scale, tau);
      read_guided(p.fake, p.fake_uncond, p.fake_guidance_scale, f);
      e.keep = kept_bits<1>(p.mask, b, i) & 1;
      if (has_table(p.multiplier)) e.multiplier = table_value(p.multiplier, b, i);
      if (p.is_raw()) {
        const Map map = map_at(p, b, i);
        e.c = map.c;
        if (with_error && p.noisy.data != nullptr) {
          read<Student>(p.noisy, b, i, noisy);
          e.a = map.a;
        }
      }
    } else {
      read<Prediction>(p.teacher, b, i, tau);
      read<Prediction>(p.fake, b, i, f);
    }
    if (with_error) read<Student>(p.student, b, i, x);
    e.x = x[0], e.tau = tau[0], e.f = f[0], e.noisy = noisy[0];
    return e;
  }

  // ---- the gradient

  // Where the coefficient is not finite, each element asks for its mask.
  FDK_HOST_DEVICE bool stores_vectors() const {
    return !kGeneral || is_finite(coefficient);
  }

  template <int W>
  FDK_HOST_DEVICE void recompute(int at, T (&direction)[W]) {
    T tau[W], gap[W];
    read_direction(at, tau, gap, direction);
  }

  template <int W>
  FDK_HOST_DEVICE void store(int at, T (&direction)[W]) const {
    const int64_t i = part.begin + at;
    // Of a dropped sample 0, whatever the direction is; of a masked element too, whose direction is 0, but not times
    // NaN.
    unsigned kept = coefficient == 0 ? 0u : ~0u;
    if (kGeneral && W == 1 && !is_finite(coefficient)) kept = kept_bits<W>(p.mask, b, i);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = kept >> n & 1 ? coefficient * direction[n] : T(0);
    write<Student>(p.gradient, p.student.dtype, b * p.elements + i, direction);
  }
};

}  // namespace fdkernels
