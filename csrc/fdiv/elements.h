// The op fdiv's math on the elements of a sample: the Math of core/cuda/schedules.cuh. Each element's direction m c (f
// - tau) stays on chip, with m the multiplier if that varies within a sample. The gradient is w / N times the
// direction.
#pragma once

#include "core/share.h"
#include "core/tables.h"
#include "core/vectors.h"
#include "fdiv/math.h"

namespace fdkernels {

// The end of the run of elements that have the same alpha and sigma as element `at`, in a share that begins at `begin`
// and has `length` elements.
FDK_HOST_DEVICE FDK_CALLED int run_end(const Problem& p, int64_t begin, int at, int length) {
  for (const Table* table : {&p.alpha, &p.sigma}) {
    if (table->entries == 1) continue;
    const int64_t end = at + table->inner - place_of(*table, begin + at).within;
    if (end < length) length = static_cast<int>(end);
  }
  return length;
}

// A call's inputs for a share of sample b. If their types are known at compile time, each has the share's own address,
// and another input that changes nothing stands in for an absent one: conditions would keep loads apart. If types are
// looked up, registers have no room for that: the share begins at element `begin`, and absent inputs read as 0.
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
    T reach = 0;  // sum of |direction|, in general kernels; in others it is the gap
    int kept = 0;

    FDK_HOST_DEVICE void add(const Added<T, T>& element) {
      distance += element.distance, energy += element.energy, gap += element.gap;
    }
  };

  static constexpr bool kTyped = !std::is_same_v<Student, AnyType>;
  static constexpr int kVector = fdkernels::kVector<Ty>;
  // Smaller in general kernels (calls with more than x, tau and f): registers would not hold their many operands.
  static constexpr int kWidth = !kGeneral ? kVector : sizeof(T) == sizeof(double) ? 1 : std::min(4, kVector);
  static constexpr int kInFlight = kGeneral ? 1 : 2;
  static constexpr int kHeld = 1;

  const Problem& p;
  const int64_t b;
  const Part& part;
  const bool with_error;  // x is read: for the dmd scale, or for statistics
  const Rows rows;
  Coefficients<T> k;
  int end = 0;              // the end of the run of elements that k belongs to
  const T coefficient = 0;  // w / N, for a scatter

  // For a gather.
  FDK_HOST_DEVICE FdivMath(const Problem& problem, int64_t sample, const Part& share)
      : p(problem),
        b(sample),
        part(share),
        with_error(problem.dmd_scale || problem.with_stats),
        rows(rows_of(with_error)) {}

  // For a scatter.
  FDK_HOST_DEVICE FdivMath(const Problem& problem, int64_t sample, const Part& share, double weight)
      : p(problem),
        b(sample),
        part(share),
        with_error(false),
        rows(rows_of(false)),
        coefficient(static_cast<T>(weight)) {}

  // ---- operands

  // Whether x and x_t are loaded: also if they are not needed, but tau can stand in for them (rows_of).
  FDK_HOST_DEVICE bool loads_error() const {
    return with_error || (kTyped && std::is_same_v<Student, Prediction>);
  }

  FDK_HOST_DEVICE Rows rows_of(bool reads_x) const {
    if constexpr (kTyped) {
      // Data and stride are selected before the address is computed. If a branch chose between two addresses, the
      // compiler would keep the result twice: for loads of vectors, and for loads of elements. Plain kernels have the
      // registers for that.
      const auto row = [&](bool present, const Samples& samples, const Samples& stand_in, int bytes) {
        const void* data = present ? samples.data : stand_in.data;
        const int64_t stride = present ? samples.batch_stride : stand_in.batch_stride;
        return Samples{static_cast<const char*>(data) + (b * stride + part.begin) * bytes, samples.dtype, 0};
      };
      constexpr int kStudent = sizeof(Student), kPrediction = sizeof(Prediction);
      constexpr bool kCanBeTau = std::is_same_v<Student, Prediction>;
      Rows at;
      at.tau = row(true, p.teacher, p.teacher, kPrediction);
      at.f = row(true, p.fake, p.fake, kPrediction);
      if constexpr (kGeneral) {
        at.x = row(reads_x, p.student, kCanBeTau ? p.teacher : p.student, kStudent);
      } else {
        at.x = reads_x || !kCanBeTau ? row(true, p.student, p.student, kStudent) : at.tau;
      }
      at.noisy = row(reads_x && p.noisy.data != nullptr, p.noisy, kCanBeTau ? p.teacher : p.student, kStudent);
      at.tau_uncond = row(p.teacher_uncond.data != nullptr, p.teacher_uncond, p.teacher, kPrediction);
      at.f_uncond = row(p.fake_uncond.data != nullptr, p.fake_uncond, p.fake, kPrediction);
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

  // Sets k and end for the run around element `at` of the share.
  FDK_HOST_DEVICE void look_up(int at) {
    end = run_end(p, part.begin, at, static_cast<int>(part.end - part.begin));
    if (!p.is_raw()) return;
    const Map map = map_at(p, b, part.begin + at);
    k.a = static_cast<T>(map.a), k.c = static_cast<T>(map.c);
    if constexpr (sizeof(T) < sizeof(double)) {
      k.a_rest = static_cast<T>(map.a - static_cast<double>(k.a));
      k.c_rest = static_cast<T>(map.c - static_cast<double>(k.c));
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

  // Reads elements at + n: tau[n], gap[n] = c (f - tau), and direction[n] = m gap[n], 0 if masked. Bit n of the result:
  // whether element at + n is unmasked.
  template <int W>
  FDK_HOST_DEVICE unsigned read_direction(int at, T (&tau)[W], T (&gap)[W], T (&direction)[W]) {
    const int64_t i = part.begin + at;
    // A thread takes its elements in ascending order. If types are looked up, registers would not hold loaded words
    // during these calls; else loads come first, and are in flight meanwhile.
    const auto follow_run = [&] {
      if (at >= end) look_up(at);
    };
    if constexpr (kGeneral && !kTyped) follow_run();
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
    if constexpr (kTyped) follow_run();
    const T g = p.teacher_uncond.data == nullptr ? T(1) : static_cast<T>(p.guidance_scale);
    const T fake_g = p.fake_uncond.data == nullptr ? T(1) : static_cast<T>(p.fake_guidance_scale);
    widen_guided(raw_tau, raw_tau_uncond, rows.tau, rows.tau_uncond, g, tau);
    widen_guided(raw_f, raw_f_uncond, rows.f, rows.f_uncond, fake_g, gap);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = gap[n] = gap_of(tau[n], gap[n], k.c);
    if (has_table(p.multiplier)) multiply(p.multiplier, b, i, direction);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = kept_or_zero(direction[n], (kept >> n & 1) != 0);
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
    if constexpr (!kTyped) load_error();  // late: registers would not hold these beside the other loads
    widen<Student>(raw_x, rows.x.dtype, x);
    if constexpr (!kGeneral) {
      add_plain(x, tau, direction, with_error, sums);
    } else {
      T noisy[W];
      widen<Student>(raw_noisy, rows.noisy.dtype, noisy);
#pragma unroll
      for (int n = 0; n < W; ++n) {
        const bool kept = bits >> n & 1;
        const T error = with_error ? error_of(x[n], noisy[n], tau[n], k) : T(0);
        sums.add(added(gap[n], direction[n], error, kept || !p.kept_only));
        sums.kept += kept;
        sums.reach += magnitude(direction[n]);
      }
    }
  }

  template <int W>
  FDK_HOST_DEVICE static void add_plain(const T (&x)[W], const T (&tau)[W], const T (&gap)[W], bool has_x,
                                        Partial& sums) {
#pragma unroll
    for (int n = 0; n < W; ++n) {
      sums.add(added(gap[n], gap[n], has_x ? x[n] - tau[n] : T(0), true));
    }
  }

  // Gathers whole vectors v, v + threads, ... of a call with x, tau and f alone. All loads come before the first use.
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

  // Returns false if the partial sums in T cannot be trusted.
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

  // Without the dmd scale, x is read for statistics only: the loss must not depend on it.
  FDK_HOST_DEVICE Sums merged(const Sums& total, bool held, Sums again) const {
    again.kept = total.kept;
    if (held && !p.dmd_scale) again.energy = total.energy, again.gap = total.gap;
    return again;
  }

  FDK_HOST_DEVICE Element element(int64_t i) const {
    T tau[1], f[1], x[1] = {}, noisy[1] = {};
    Element e = kGeneral ? element_at(p, b, i) : Element{};
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
      if (with_error && p.noisy.data != nullptr) read<Student>(p.noisy, b, i, noisy);
    } else {
      read<Prediction>(p.teacher, b, i, tau);
      read<Prediction>(p.fake, b, i, f);
    }
    if (with_error) read<Student>(p.student, b, i, x);
    e.x = x[0], e.tau = tau[0], e.f = f[0], e.noisy = noisy[0];
    return e;
  }

  // ---- the gradient

  // Not if the coefficient is not finite: store() then reads the mask of each element.
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
    // A dropped sample (coefficient 0) gets 0, whatever its direction. So does a masked element: its direction is 0,
    // but 0 * NaN is NaN.
    unsigned kept = coefficient == 0 ? 0u : ~0u;
    if (kGeneral && W == 1 && !is_finite(coefficient)) kept = kept_bits<W>(p.mask, b, i);
#pragma unroll
    for (int n = 0; n < W; ++n) direction[n] = kept >> n & 1 ? coefficient * direction[n] : T(0);
    write<Student>(p.gradient, p.student.dtype, b * p.elements + i, direction);
  }
};

}  // namespace fdkernels
