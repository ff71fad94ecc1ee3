// The operands of the op fdiv on the CPU, a block of elements at a time.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include "core/cpu/blocks.h"
#include "fdiv/math.h"

namespace fdkernels {

namespace {

// One block of every operand; an absent one has its neutral value. The tables' values (a, c, multiplier, keep) are used
// only if elements do not share entries (has_runs).
template <class T>
struct Block {
  const T *x = nullptr, *tau = nullptr, *f = nullptr, *noisy = nullptr;
  alignas(64) T x_buffer[kBlock], tau_buffer[kBlock], f_buffer[kBlock], noisy_buffer[kBlock], uncond_buffer[kBlock];
  alignas(64) double a[kBlock], c[kBlock];
  alignas(64) T multiplier[kBlock], keep[kBlock];  // keep: 1 or 0

  explicit Block(const Problem& p, bool with_tables) {
    if (p.is_raw() && p.noisy.data == nullptr) {
      noisy = noisy_buffer;
      for (int i = 0; i < kBlock; ++i) noisy_buffer[i] = 0;
    }
    if (!with_tables) return;
    for (int i = 0; i < kBlock; ++i) a[i] = 0, c[i] = 1, multiplier[i] = 1, keep[i] = 1;
  }
};

template <class T>
const T* load_guided(const Samples& cond, const Samples& uncond, double guidance_scale, int64_t b, int64_t begin,
                     int count, T* buffer, T* uncond_buffer) {
  const T* v = load(cond, b, begin, count, buffer);
  if (uncond.data == nullptr) return v;
  const T* u = load(uncond, b, begin, count, uncond_buffer);
  const T g = static_cast<T>(guidance_scale);
  for (int i = 0; i < count; ++i) buffer[i] = guided(v[i], u[i], g);
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

// The tables' values for a run of elements that share entries.
struct RunValues {
  double a = 0, c = 1, multiplier = 1;
  bool keep = true;
};

// Whether table entries are shared by runs of elements that are worth loops of their own. If not, every element is
// treated as having its own entries.
bool has_runs(const Problem& p) {
  for (const Table* table : {&p.alpha, &p.sigma, &p.multiplier, &p.mask}) {
    if (varies(*table) && table->inner < kShortestRun) return false;
  }
  return true;
}

// The tables' values at element i. Lowers `count` to the number of elements from i on that share them.
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
