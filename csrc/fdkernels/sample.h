// What one thread does with its part of a sample: `gather` loads, sums and keeps the gradient's direction on chip,
// `scatter` stores coefficient * direction. The CUDA kernels add only how threads and blocks share their sums, so host
// tests run these very functions, thread by thread.
#pragma once

#include "element.h"
#include "vectors.h"

namespace fdkernels {

// A thread's part of a block's share of a sample, in vectors: thread, thread + threads, ...
struct Part {
  int64_t begin, end;  // of the share, in elements; begin is a multiple of the vector
  int held;            // vectors of the share that stay on chip between gather and scatter
  int thread, threads;
};

// The share of block `rank` of the team that has sample b.
FDK_HOST_DEVICE inline Part part_of(int64_t elements, int64_t share, int held, int rank, int thread, int threads) {
  const int64_t begin = rank * share < elements ? rank * share : elements;
  const int64_t end = begin + share < elements ? begin + share : elements;
  return {begin, end, held, thread, threads};
}

// Vectors of a part whose float sums are added before they become double: few enough that rounding stays below 1e-6.
constexpr int kRun = 8;
// Vectors that a thread has in flight at a time.
template <bool kGeneral>
constexpr int kInFlight = kGeneral ? 1 : 2;

// ---- small operands

// q = i / inner without a 64-bit division where 32 bits do.
FDK_HOST_DEVICE inline int64_t divided(int64_t i, int64_t by) {
  if (((i | by) >> 32) == 0) return static_cast<uint32_t>(i) / static_cast<uint32_t>(by);
  return i / by;
}

FDK_HOST_DEVICE inline int64_t entry_of(const Table& table, int64_t i) {
  const int64_t run = divided(i, table.inner);
  return run - divided(run, table.entries) * table.entries;
}

FDK_HOST_DEVICE inline double table_value(const Table& table, int64_t b, int64_t i) {
  return table_entry(table, b, table.entries == 1 ? 0 : entry_of(table, i));
}

FDK_HOST_DEVICE inline bool is_kept(const Table& mask, int64_t b, int64_t i) {
  if (mask.data == nullptr) return true;
  return static_cast<const uint8_t*>(mask.data)[b * mask.batch_stride + entry_of(mask, i)] != 0;
}

FDK_HOST_DEVICE inline bool has_table(const Table& table) {
  return table.data != nullptr && table.entries > 1;
}

// ---- on-chip vectors: planes of 16 bytes, so that neighbouring threads never meet in a bank

template <int V, class T>
FDK_HOST_DEVICE inline void keep(Words* hold, int held, int v, const T (&values)[V]) {
  constexpr int kPlanes = V * sizeof(T) / 16;
  Words planes[kPlanes];
  std::memcpy(planes, values, sizeof(planes));
#pragma unroll
  for (int j = 0; j < kPlanes; ++j) hold[j * held + v] = planes[j];
}

template <int V, class T>
FDK_HOST_DEVICE inline void recall(const Words* hold, int held, int v, T (&values)[V]) {
  constexpr int kPlanes = V * sizeof(T) / 16;
  Words planes[kPlanes];
#pragma unroll
  for (int j = 0; j < kPlanes; ++j) planes[j] = hold[j * held + v];
  std::memcpy(values, planes, sizeof(planes));
}

// ---- the direction of the gradient, scale c (f - tau), and the sums over it

template <class T>
struct PartialSums {
  T distance = 0, energy = 0, gap = 0;
  T reach = 0;  // of directions; is the gap where there is neither scale table nor mask
  int kept = 0;
};

template <class T>
FDK_HOST_DEVICE inline T magnitude(T v) {
  return v < 0 ? -v : v;  // of a NaN: NaN
}

// pred = u + g (cond - u)
template <class Stored, bool kWhole, int V, class T>
FDK_HOST_DEVICE inline void read_guided(const Images& cond, const Images& uncond, double guidance_scale, int64_t b,
                                        int64_t i, int count, T (&out)[V]) {
  read<Stored, kWhole>(cond, b, i, count, out);
  if (uncond.data == nullptr) return;
  T u[V];
  read<Stored, kWhole>(uncond, b, i, count, u);
  const T g = static_cast<T>(guidance_scale);
#pragma unroll
  for (int k = 0; k < V; ++k) out[k] = u[k] + g * (out[k] - u[k]);
}

// Calls use(k, entry) for elements i + k: one division for all of them.
template <int V, class Use>
FDK_HOST_DEVICE inline void for_entries(const Table& table, int64_t i, const Use& use) {
  int64_t run = table.entries == 1 ? 0 : divided(i, table.inner);
  int64_t within = i - run * table.inner, entry = run - divided(run, table.entries) * table.entries;
  const bool one = table.entries == 1 || table.inner % V == 0;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    use(k, entry);
    if (!one && ++within == table.inner) {
      within = 0;
      entry = entry + 1 < table.entries ? entry + 1 : 0;
    }
  }
}

template <int V, class T>
FDK_HOST_DEVICE inline void multiply(const Table& table, int64_t b, int64_t i, T (&values)[V]) {
  for_entries<V>(table, i, [&](int k, int64_t entry) { values[k] *= static_cast<T>(table_entry(table, b, entry)); });
}

// Bit k: whether element i + k is unmasked.
template <int V>
FDK_HOST_DEVICE inline unsigned kept_bits(const Table& mask, int64_t b, int64_t i) {
  if (mask.data == nullptr) return ~0u;
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + b * mask.batch_stride;
  unsigned bits = 0;
  for_entries<V>(mask, i, [&](int k, int64_t entry) { bits |= static_cast<unsigned>(row[entry] != 0) << k; });
  return bits;
}

// error[k] = x - (a x_t + c tau). In float the rests of a and c are taken in their turn: rounded away, they would shift
// a whole sample the same way, which no mean averages out.
template <class Ty, bool kWhole, int V, class T>
FDK_HOST_DEVICE inline void read_error(const Problem& p, int64_t b, int64_t i, int count, const T (&tau)[V],
                                       T (&error)[V]) {
  read<typename Ty::Student, kWhole>(p.student, b, i, count, error);
  if (p.noisy.data == nullptr) {
#pragma unroll
    for (int k = 0; k < V; ++k) error[k] -= tau[k];
    return;
  }
  T noisy[V];
  read<typename Ty::Student, kWhole>(p.noisy, b, i, count, noisy);
  const auto subtract = [&](int k, double coefficient, T value) {
    const T high = static_cast<T>(coefficient), low = static_cast<T>(coefficient - static_cast<double>(high));
    error[k] -= high * value;
    error[k] -= low * value;
  };
  for_entries<V>(p.a, i, [&](int k, int64_t entry) { subtract(k, table_entry(p.a, b, entry), noisy[k]); });
  for_entries<V>(p.c, i, [&](int k, int64_t entry) { subtract(k, table_entry(p.c, b, entry), tau[k]); });
}

// direction[k] of elements [i, i + count), 0 where masked; gap[k] = c (f - tau), and tau. Returns which are unmasked.
template <class Ty, bool kWhole, int V, class T>
FDK_HOST_DEVICE inline unsigned read_direction(const Problem& p, int64_t b, int64_t i, int count, T (&tau)[V],
                                               T (&gap)[V], T (&direction)[V]) {
  using Prediction = typename Ty::Prediction;
  read_guided<Prediction, kWhole>(p.teacher, p.teacher_uncond, p.guidance_scale, b, i, count, tau);
  read_guided<Prediction, kWhole>(p.fake, p.fake_uncond, p.fake_guidance_scale, b, i, count, gap);
#pragma unroll
  for (int k = 0; k < V; ++k) gap[k] -= tau[k];
  if (p.c.data != nullptr) multiply(p.c, b, i, gap);
#pragma unroll
  for (int k = 0; k < V; ++k) direction[k] = gap[k];
  if (has_table(p.scale)) multiply(p.scale, b, i, direction);
  const unsigned kept = kept_bits<V>(p.mask, b, i);
#pragma unroll
  for (int k = 0; k < V; ++k) direction[k] = kept >> k & 1 ? direction[k] : T(0);
  return kept;
}

// Vector v of a part whose call has anything beyond x, tau and f.
template <class Ty, bool kWhole>
FDK_HOST_DEVICE inline void gather_general(const Problem& p, int64_t b, const Part& part, int v, int count,
                                           bool with_error, Words* hold, PartialSums<typename Ty::T>& sums) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const int64_t i = part.begin + static_cast<int64_t>(v) * V;
  T tau[V], gap[V], direction[V], error[V] = {};
  const unsigned bits = read_direction<Ty, kWhole>(p, b, i, count, tau, gap, direction);
  if (with_error) read_error<Ty, kWhole>(p, b, i, count, tau, error);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    if (k >= count) continue;
    // A masked element counts in gap and distance, unless it is not finite.
    const bool kept = bits >> k & 1;
    sums.kept += kept;
    sums.energy += direction[k] * direction[k];
    sums.reach += magnitude(direction[k]);
    if (kept || has_value(gap[k])) sums.gap += magnitude(gap[k]);
    if (kept || has_value(error[k])) sums.distance += magnitude(error[k]);
  }
  if (v < part.held) keep(hold, part.held, v, direction);
}

// Vectors v, v + threads, ... of a call that has x, tau and f alone; all loads come before the first use.
template <class Ty, int kVectors>
FDK_HOST_DEVICE inline void gather_plain(const Problem& p, int64_t b, const Part& part, int v, bool with_error,
                                         Words* hold, PartialSums<typename Ty::T>& sums) {
  using T = typename Ty::T;
  using Student = typename Ty::Student;
  using Prediction = typename Ty::Prediction;
  constexpr int V = kVector<Ty>;
  Words raw_x[kVectors], raw_tau[kVectors], raw_f[kVectors];
#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    const int64_t i = part.begin + static_cast<int64_t>(v + u * part.threads) * V;
    raw_tau[u] = read_vector<Prediction, V>(p.teacher, b, i);
    raw_f[u] = read_vector<Prediction, V>(p.fake, b, i);
    raw_x[u] = with_error ? read_vector<Student, V>(p.student, b, i) : Words{};
  }
#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    T x[V], tau[V], d[V];
    widen<Prediction>(raw_tau[u], p.teacher.dtype, tau);
    widen<Prediction>(raw_f[u], p.fake.dtype, d);
    widen<Student>(raw_x[u], p.student.dtype, x);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      d[k] -= tau[k];
      sums.energy += d[k] * d[k];
      sums.gap += magnitude(d[k]);
      if (with_error) sums.distance += magnitude(x[k] - tau[k]);
    }
    const int w = v + u * part.threads;
    if (w < part.held) keep(hold, part.held, w, d);
  }
}

// Up to kInFlight vectors from v on.
template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline void gather_some(const Problem& p, int64_t b, const Part& part, int v, int vectors, int whole,
                                        bool with_error, Words* hold, PartialSums<typename Ty::T>& sums) {
  constexpr int V = kVector<Ty>;
  constexpr int kTogether = kInFlight<kGeneral>;
  if constexpr (!kGeneral) {
    if (v + (kTogether - 1) * part.threads < whole) {
      gather_plain<Ty, kTogether>(p, b, part, v, with_error, hold, sums);
      return;
    }
  }
  for (int u = 0; u < kTogether; ++u) {
    const int w = v + u * part.threads;
    if (w >= vectors) return;
    if (w < whole) {
      if constexpr (kGeneral) {
        gather_general<Ty, true>(p, b, part, w, V, with_error, hold, sums);
      } else {
        gather_plain<Ty, 1>(p, b, part, w, with_error, hold, sums);
      }
    } else {
      const int64_t left = part.end - part.begin - static_cast<int64_t>(w) * V;
      gather_general<Ty, false>(p, b, part, w, left < V ? static_cast<int>(left) : V, with_error, hold, sums);
    }
  }
}

template <class Ty>
FDK_HOST_DEVICE inline Element element(const Problem& p, int64_t b, int64_t i, bool with_error) {
  using T = typename Ty::T;
  T tau[1], f[1];
  read_guided<typename Ty::Prediction, false>(p.teacher, p.teacher_uncond, p.guidance_scale, b, i, 1, tau);
  read_guided<typename Ty::Prediction, false>(p.fake, p.fake_uncond, p.fake_guidance_scale, b, i, 1, f);
  Element e;
  e.tau = tau[0];
  e.f = f[0];
  e.keep = is_kept(p.mask, b, i);
  if (p.c.data != nullptr) e.c = table_value(p.c, b, i);
  if (has_table(p.scale)) e.scale = table_value(p.scale, b, i);
  if (with_error) {
    e.x = read_one<typename Ty::Student, T>(p.student, b, i);
    if (p.noisy.data != nullptr) {
      e.noisy = read_one<typename Ty::Student, T>(p.noisy, b, i);
      e.a = table_value(p.a, b, i);
    }
  }
  return e;
}

// The sums over a part, and its directions on chip, as far as `held` reaches.
template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline Sums gather(const Problem& p, int64_t b, const Part& part, Words* hold) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const int length = static_cast<int>((part.end - part.begin + V - 1) / V);
  const int whole = p.aligned ? static_cast<int>((part.end - part.begin) / V) : 0;
  const bool with_error = p.dmd_scale || p.with_stats;
  Sums total;
  for (int first = part.thread; first < length; first += kRun * part.threads) {
    const int last = first + kRun * part.threads < length ? first + kRun * part.threads : length;
    PartialSums<T> sums;
    for (int v = first; v < last; v += kInFlight<kGeneral> * part.threads) {
      gather_some<Ty, kGeneral>(p, b, part, v, last, whole < last ? whole : last, with_error, hold, sums);
    }
    if (sizeof(T) == sizeof(double)
            ? trustworthy<T>(sums.distance, 1, sums.gap + sums.energy, 1)
            : trustworthy<T>(sums.distance, sums.energy, sums.gap, kGeneral ? sums.reach : sums.gap)) {
      total.distance += sums.distance;
      total.energy += sums.energy;
      total.gap += sums.gap;
    } else {
      for (int v = first; v < last; v += part.threads) {
        const int64_t i = part.begin + static_cast<int64_t>(v) * V;
        for (int k = 0; k < V && i + k < part.end; ++k) {
          add_carefully(total, element<Ty>(p, b, i + k, with_error), with_error, p.dmd_scale);
        }
      }
    }
    total.kept += sums.kept;
  }
  return total;
}

// ---- the gradient

template <class Ty, bool kWhole, int V, class T>
FDK_HOST_DEVICE inline void store(const Problem& p, int64_t b, int64_t i, int count, T coefficient, bool masked,
                                  T (&direction)[V]) {
  // Of a dropped sample and of a masked element 0, whatever the direction or the coefficient is.
  const unsigned kept = coefficient == 0 ? 0u : masked ? kept_bits<V>(p.mask, b, i) : ~0u;
#pragma unroll
  for (int k = 0; k < V; ++k) direction[k] = kept >> k & 1 ? coefficient * direction[k] : T(0);
  write<typename Ty::Student, kWhole>(p.gradient, p.student.dtype, b * p.elements + i, count, direction);
}

// Stores coefficient * direction of a part; what is not on chip is read again.
template <class Ty, bool kGeneral>
FDK_HOST_DEVICE inline void scatter(const Problem& p, int64_t b, const Part& part, const Words* hold,
                                    double sample_coefficient) {
  using T = typename Ty::T;
  constexpr int V = kVector<Ty>;
  const T coefficient = static_cast<T>(sample_coefficient);
  // Only NaN times a masked direction of 0 is not 0.
  const bool masked = kGeneral && p.mask.data != nullptr && !has_value(coefficient);
  const int length = static_cast<int>((part.end - part.begin + V - 1) / V);
  const int whole = p.aligned ? static_cast<int>((part.end - part.begin) / V) : 0;
  for (int v = part.thread; v < length; v += part.threads) {
    const int64_t i = part.begin + static_cast<int64_t>(v) * V;
    const int count = part.end - i < V ? static_cast<int>(part.end - i) : V;
    T direction[V];
    if (v < part.held) {
      recall(hold, part.held, v, direction);
    } else {
      T tau[V], gap[V];
      if (v < whole) {
        read_direction<Ty, true>(p, b, i, V, tau, gap, direction);
      } else {
        read_direction<Ty, false>(p, b, i, count, tau, gap, direction);
      }
    }
    if (v < whole) {
      store<Ty, true>(p, b, i, V, coefficient, masked, direction);
    } else {
      store<Ty, false>(p, b, i, count, coefficient, masked, direction);
    }
  }
}

}  // namespace fdkernels
