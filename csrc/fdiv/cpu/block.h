// What the element loops read: blocks of the N-sized inputs in the type of the arithmetic, and the tables' entries.
//
// In an unnamed namespace, like all that is compiled once per instruction set.
#pragma once

#include <cstring>
#include <initializer_list>

#include "core/cpu/convert.h"
#include "fdiv/math.h"

namespace fdkernels {

namespace {

constexpr int kBlock = 512;
// The fewest elements with the same entries that are worth a block.
constexpr int64_t kShortestRun = 64;

template <class T>
constexpr DType kNative = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

// A block of an N-sized input: where it lies if it needs no widening, else in the buffer.
template <class T>
const T* load(const Samples& samples, int64_t b, int64_t begin, int count, T* buffer) {
  const int64_t offset = b * samples.batch_stride + begin;
  if (samples.dtype == kNative<T>) return static_cast<const T*>(samples.data) + offset;
  widen(samples.data, samples.dtype, offset, count, buffer);
  return buffer;
}

// Where a table has the entry of element i.
int64_t entry_at(const Table& table, int64_t b, int64_t i) {
  return b * table.batch_stride + (i / table.inner) % table.entries;
}

double number_at(const Table& table, int64_t b, int64_t i) {
  if (table.data == nullptr) return table.fixed;
  double value;
  widen(table.data, table.dtype, entry_at(table, b, i), 1, &value);
  return value;
}

bool kept_at(const Table& mask, int64_t b, int64_t i) {
  return static_cast<const uint8_t*>(mask.data)[entry_at(mask, b, i)] != 0;
}

bool varies(const Table& table) {
  return table.data != nullptr && table.entries > 1;
}

// Of the run of elements around i that read one entry, those from i on, at most `most`.
int64_t run_at(const Table& table, int64_t i, int64_t most) {
  const int64_t left = table.inner - i % table.inner;
  return left < most ? left : most;
}

// A block of a table, each entry repeated for the elements that read it.
template <class T, class Copy, class Fill>
void expand(const Table& table, int64_t b, int64_t begin, int count, T* out, Copy copy, Fill fill) {
  for (int done = 0; done < count;) {
    const int64_t entry = entry_at(table, b, begin + done), left = count - done;
    int run;
    if (table.inner == 1) {
      const int64_t row_left = (b * table.batch_stride + table.entries) - entry;
      run = static_cast<int>(row_left < left ? row_left : left);
      copy(entry, run, out + done);
    } else {
      run = static_cast<int>(run_at(table, begin + done, left));
      fill(entry, run, out + done);
    }
    done += run;
  }
}

template <class T>
void expand_numbers(const Table& table, int64_t b, int64_t begin, int count, T* out) {
  if (table.data == nullptr) {
    for (int i = 0; i < count; ++i) out[i] = static_cast<T>(table.fixed);
    return;
  }
  expand(
      table, b, begin, count, out, [&](int64_t at, int run, T* to) { widen(table.data, table.dtype, at, run, to); },
      [&](int64_t at, int run, T* to) {
        T value{};
        widen(table.data, table.dtype, at, 1, &value);
        for (int i = 0; i < run; ++i) to[i] = value;
      });
}

void expand_mask(const Table& mask, int64_t b, int64_t begin, int count, uint8_t* out) {
  const uint8_t* data = static_cast<const uint8_t*>(mask.data);
  expand(
      mask, b, begin, count, out, [&](int64_t at, int run, uint8_t* to) { std::memcpy(to, data + at, run); },
      [&](int64_t at, int run, uint8_t* to) { std::memset(to, data[at], run); });
}

// One block of every operand; what a call lacks holds its neutral value. The tables' are for elements that share none.
template <class T>
struct Block {
  const T *x = nullptr, *tau = nullptr, *f = nullptr, *noisy = nullptr;
  T x_buffer[kBlock], tau_buffer[kBlock], f_buffer[kBlock], noisy_buffer[kBlock], uncond_buffer[kBlock];
  double a[kBlock], c[kBlock];
  T multiplier[kBlock];
  uint8_t keep[kBlock];

  explicit Block(const Problem& p, bool with_tables) {
    if (p.is_raw() && p.noisy.data == nullptr) {
      noisy = noisy_buffer;
      for (int i = 0; i < kBlock; ++i) noisy_buffer[i] = 0;
    }
    if (!with_tables) return;
    for (int i = 0; i < kBlock; ++i) a[i] = 0, c[i] = 1, multiplier[i] = 1, keep[i] = 1;
  }
};

// pred = u + g (cond - u)
template <class T>
const T* load_guided(const Samples& cond, const Samples& uncond, double guidance_scale, int64_t b, int64_t begin,
                     int count, T* buffer, T* uncond_buffer) {
  const T* v = load(cond, b, begin, count, buffer);
  if (uncond.data == nullptr) return v;
  const T* u = load(uncond, b, begin, count, uncond_buffer);
  const T g = static_cast<T>(guidance_scale);
  for (int i = 0; i < count; ++i) buffer[i] = u[i] + g * (v[i] - u[i]);
  return buffer;
}

template <class T>
void load_samples(const Problem& p, int64_t b, int64_t begin, int count, bool read_x, Block<T>& block) {
  block.tau = load_guided(p.teacher, p.teacher_uncond, p.guidance_scale, b, begin, count, block.tau_buffer,
                          block.uncond_buffer);
  block.f =
      load_guided(p.fake, p.fake_uncond, p.fake_guidance_scale, b, begin, count, block.f_buffer, block.uncond_buffer);
  if (!read_x) return;
  block.x = load(p.student, b, begin, count, block.x_buffer);
  if (p.noisy.data != nullptr) block.noisy = load(p.noisy, b, begin, count, block.noisy_buffer);
}

template <class T>
void load_tables(const Problem& p, int64_t b, int64_t begin, int count, bool read_x, Block<T>& block) {
  if (varies(p.multiplier)) expand_numbers(p.multiplier, b, begin, count, block.multiplier);
  if (p.mask.data != nullptr) expand_mask(p.mask, b, begin, count, block.keep);
  if (!p.is_raw()) return;
  double* alpha = block.a;
  double* sigma = block.c;
  expand_numbers(p.alpha, b, begin, count, alpha);
  expand_numbers(p.sigma, b, begin, count, sigma);
  const bool with_a = read_x && p.noisy.data != nullptr;
  for (int i = 0; i < count; ++i) {
    const Map map = coefficients_of(p.prediction, alpha[i], sigma[i], p.sigma_data);
    block.a[i] = with_a ? map.a : 0.0;
    block.c[i] = map.c;
  }
}

// What every element of a run has in common.
struct RunValues {
  double a = 0, c = 1, multiplier = 1;
  bool keep = true;
};

// Whether entries last for runs that are worth loops of their own; else every element is taken to have its own.
bool has_runs(const Problem& p) {
  for (const Table* table : {&p.alpha, &p.sigma, &p.multiplier, &p.mask}) {
    if (varies(*table) && table->inner < kShortestRun) return false;
  }
  return true;
}

// What element i shares with those from it on, and in `count`, so far the most, how many these are.
RunValues run_from(const Problem& p, int64_t b, int64_t i, int64_t* count) {
  for (const Table* table : {&p.alpha, &p.sigma, &p.multiplier, &p.mask}) {
    if (varies(*table)) *count = run_at(*table, i, *count);
  }
  RunValues run;
  if (p.is_raw()) {
    const double alpha = number_at(p.alpha, b, i), sigma = number_at(p.sigma, b, i);
    const Map map = coefficients_of(p.prediction, alpha, sigma, p.sigma_data);
    run.c = map.c;
    if (p.noisy.data != nullptr) run.a = map.a;
  }
  if (varies(p.multiplier)) run.multiplier = number_at(p.multiplier, b, i);
  if (p.mask.data != nullptr) run.keep = kept_at(p.mask, b, i);
  return run;
}

}  // namespace

}  // namespace fdkernels
