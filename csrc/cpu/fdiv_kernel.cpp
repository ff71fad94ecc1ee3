// The flagship's element loops. Reads x, tau, f once per pass in blocks that stay in L1; a sample's second pass (apply)
// finds them in cache. Half precision is widened into block buffers on load and rounded once on store.
//
// Everything here lives in an unnamed namespace: an inline function shared between instruction sets could be linked
// from the widest one into the path of a processor that lacks it.

#include "fdiv_kernel.h"

#include <cstring>

#include "fdkernels/element.h"
#include "numbers.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

constexpr int kBlock = 512;

inline float magnitude(float v) {
  return __builtin_fabsf(v);
}

inline double magnitude(double v) {
  return __builtin_fabs(v);
}

template <class T>
constexpr DType kNative = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

// A block of an N-sized input: where it lies if it needs no widening, else in the buffer.
template <class T>
const T* load(const Images& images, int64_t b, int64_t begin, int count, T* buffer) {
  const int64_t offset = b * images.batch_stride + begin;
  if (images.dtype == kNative<T>) return static_cast<const T*>(images.data) + offset;
  widen(images.data, images.dtype, offset, count, buffer);
  return buffer;
}

// A block of a table, each entry repeated for the elements that read it.
template <class T, class Copy, class Fill>
void expand(const Table& table, int64_t b, int64_t begin, int count, T* out, Copy copy, Fill fill) {
  const int64_t row = b * table.batch_stride;
  for (int done = 0; done < count;) {
    const int64_t i = begin + done;
    const int64_t entry = (i / table.inner) % table.entries;
    const int64_t left = table.inner == 1 ? table.entries - entry : table.inner - i % table.inner;
    const int run = static_cast<int>(left < count - done ? left : count - done);
    if (table.inner == 1) {
      copy(row + entry, run, out + done);
    } else {
      fill(row + entry, run, out + done);
    }
    done += run;
  }
}

template <class T>
void expand_numbers(const Table& table, int64_t b, int64_t begin, int count, T* out) {
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

// One block of every operand. General operands that a call lacks hold their neutral value.
template <class T>
struct Block {
  const T *x, *tau, *f, *noisy;
  T x_buffer[kBlock], tau_buffer[kBlock], f_buffer[kBlock], noisy_buffer[kBlock], uncond_buffer[kBlock];
  double a[kBlock], c[kBlock];
  T scale[kBlock];
  uint8_t keep[kBlock];
};

bool is_plain(const Problem& p) {
  return p.c.data == nullptr && p.mask.data == nullptr && (p.scale.data == nullptr || p.scale.entries == 1);
}

template <class T>
void fill_neutral(const Problem& p, Block<T>& block) {
  if (p.c.data == nullptr) {
    for (int i = 0; i < kBlock; ++i) block.c[i] = 1;
  }
  if (p.noisy.data == nullptr) {
    for (int i = 0; i < kBlock; ++i) block.a[i] = block.noisy_buffer[i] = 0;
  }
  for (int i = 0; i < kBlock; ++i) block.scale[i] = 1;
  std::memset(block.keep, 1, kBlock);
}

// pred = u + g (cond - u)
template <class T>
const T* load_guided(const Images& cond, const Images& uncond, double guidance_scale, int64_t b, int64_t begin,
                     int count, T* buffer, T* uncond_buffer) {
  const T* v = load(cond, b, begin, count, buffer);
  if (uncond.data == nullptr) return v;
  const T* u = load(uncond, b, begin, count, uncond_buffer);
  const T g = static_cast<T>(guidance_scale);
  for (int i = 0; i < count; ++i) buffer[i] = u[i] + g * (v[i] - u[i]);
  return buffer;
}

template <class T>
void load_predictions(const Problem& p, int64_t b, int64_t begin, int count, Block<T>& block) {
  block.tau = load_guided(p.teacher, p.teacher_uncond, p.guidance_scale, b, begin, count, block.tau_buffer,
                          block.uncond_buffer);
  block.f =
      load_guided(p.fake, p.fake_uncond, p.fake_guidance_scale, b, begin, count, block.f_buffer, block.uncond_buffer);
}

template <class T>
void load_general(const Problem& p, int64_t b, int64_t begin, int count, bool with_noisy, Block<T>& block) {
  if (p.c.data != nullptr) expand_numbers(p.c, b, begin, count, block.c);
  if (p.scale.data != nullptr && p.scale.entries > 1) expand_numbers(p.scale, b, begin, count, block.scale);
  if (p.mask.data != nullptr) expand_mask(p.mask, b, begin, count, block.keep);
  block.noisy = block.noisy_buffer;
  if (with_noisy && p.noisy.data != nullptr) {
    expand_numbers(p.a, b, begin, count, block.a);
    block.noisy = load(p.noisy, b, begin, count, block.noisy_buffer);
  }
}

template <class T, bool kReadX, class Stored>
Sums reduce_plain(const Stored* x, const Stored* tau, const Stored* f, int count) {
  T distance = 0, energy = 0, gap = 0;
#pragma omp simd reduction(+ : distance, energy, gap)
  for (int i = 0; i < count; ++i) {
    const T d = number(f[i]) - number(tau[i]);
    energy += d * d;
    gap += magnitude(d);
    if constexpr (kReadX) distance += magnitude(number(x[i]) - number(tau[i]));
  }
  return {static_cast<double>(distance), static_cast<double>(energy), static_cast<double>(gap), false};
}

template <class T, class Stored>
void apply_plain(const Stored* tau, const Stored* f, int64_t count, T w, Stored* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) put(w * (number(f[i]) - number(tau[i])), out[i]);
}

// Whether every N-sized operand is the same plain bfloat16, which then is widened in registers, without buffers.
bool is_bf16(const Problem& p) {
  const bool guided = p.teacher_uncond.data != nullptr || p.fake_uncond.data != nullptr;
  return p.student.dtype == DType::bf16 && p.teacher.dtype == DType::bf16 && p.fake.dtype == DType::bf16 && !guided;
}

const Bf16* bf16_at(const Images& images, int64_t b, int64_t begin) {
  return static_cast<const Bf16*>(images.data) + b * images.batch_stride + begin;
}

template <class T, bool kReadX>
Sums reduce_bf16(const Problem& p, int64_t b, int64_t begin, int count) {
  return reduce_plain<T, kReadX>(bf16_at(p.student, b, begin), bf16_at(p.teacher, b, begin), bf16_at(p.fake, b, begin),
                                 count);
}

// x - tau in double: a and c rounded to float would shift a whole sample the same way, which no mean averages out.
template <class T, bool kReadX>
Sums reduce_general(const Block<T>& block, int count) {
  T energy = 0, gap = 0;
  double distance = 0;
#pragma omp simd reduction(+ : distance, energy, gap)
  for (int i = 0; i < count; ++i) {
    const T d = static_cast<T>(block.c[i]) * (block.f[i] - block.tau[i]);
    const T g = block.keep[i] ? block.scale[i] * d : T(0);
    energy += g * g;
    gap += magnitude(d);
    if constexpr (kReadX) {
      const double x0 = block.a[i] * block.noisy[i] + block.c[i] * block.tau[i];
      const double e = static_cast<double>(block.x[i]) - x0;
      distance += magnitude(e);
    }
  }
  return {distance, static_cast<double>(energy), static_cast<double>(gap), false};
}

// Element by element in double: where a float sum overflowed, underflowed or met a NaN, this finds out which.
template <class T>
Sums reduce_carefully(const Problem& p, const Block<T>& block, int count, bool read_x) {
  const bool plain = is_plain(p);
  Sums sums;
  for (int i = 0; i < count; ++i) {
    Element e{.tau = block.tau[i], .f = block.f[i]};
    if (read_x) e.x = block.x[i];
    if (!plain) {
      e.c = block.c[i];
      e.scale = block.scale[i];
      e.keep = block.keep[i];
      if (read_x) e.a = block.a[i], e.noisy = block.noisy[i];
    }
    add_carefully(sums, e, read_x, p.dmd_scale);
  }
  return sums;
}

// Sums of squares that T can hold without overflow, and either large enough that what underflowed in them is nothing,
// or of a block where the energy is nothing: f = tau (a fake score that starts as the teacher), or every element
// masked.
template <class T>
bool trustworthy(const Sums& sums, const Block<T>& block, int count, bool plain) {
  if (!(is_finite(sums.distance) && is_finite(sums.gap) && is_finite(sums.energy))) return false;
  if (sizeof(T) == sizeof(double) || sums.energy > 1e-28 || sums.gap == 0) return true;
  return !plain && std::memchr(block.keep, 1, count) == nullptr;
}

template <class T>
void load_block(const Problem& p, int64_t b, int64_t begin, int count, bool read_x, bool plain, Block<T>& block) {
  load_predictions(p, b, begin, count, block);
  if (read_x) block.x = load(p.student, b, begin, count, block.x_buffer);
  if (!plain) load_general(p, b, begin, count, read_x, block);
}

template <class T>
Sums reduce(const Problem& p, int64_t b, int64_t begin, int64_t end) {
  const bool read_x = p.dmd_scale || p.with_stats, plain = is_plain(p), bf16 = plain && is_bf16(p);
  Block<T> block;
  if (!plain) fill_neutral(p, block);
  Sums total;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    Sums sums;
    if (bf16) {
      sums = read_x ? reduce_bf16<T, true>(p, b, at, count) : reduce_bf16<T, false>(p, b, at, count);
    } else {
      load_block(p, b, at, count, read_x, plain, block);
      if (plain) {
        sums = read_x ? reduce_plain<T, true>(block.x, block.tau, block.f, count)
                      : reduce_plain<T, false>(block.tau, block.tau, block.f, count);
      } else {
        sums = read_x ? reduce_general<T, true>(block, count) : reduce_general<T, false>(block, count);
      }
    }
    if (!trustworthy(sums, block, count, plain)) {
      if (bf16) load_block(p, b, at, count, read_x, plain, block);
      sums = reduce_carefully(p, block, count, read_x);
    }
    // By hand: a function shared with fdiv.cpp could be linked from here, the widest instruction set included.
    total.distance += sums.distance;
    total.energy += sums.energy;
    total.gap += sums.gap;
    total.nonfinite |= sums.nonfinite;
  }
  return total;
}

template <class T>
void apply(const Problem& p, int64_t b, int64_t begin, int64_t end, double coefficient) {
  const bool plain = is_plain(p), direct = p.student.dtype == kNative<T>;
  const int64_t start = b * p.elements;
  const T w = static_cast<T>(coefficient);
  if (plain && is_bf16(p)) {
    Bf16* out = static_cast<Bf16*>(p.gradient) + start;
    apply_plain(bf16_at(p.teacher, b, begin), bf16_at(p.fake, b, begin), end - begin, w, out + begin);
    return;
  }
  Block<T> block;
  if (!plain) fill_neutral(p, block);
  T out_buffer[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    load_block(p, b, at, count, false, plain, block);
    T* out = direct ? static_cast<T*>(p.gradient) + start + at : out_buffer;
    if (plain) {
      apply_plain(block.tau, block.f, count, w, out);
    } else {
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const T g = w * (block.scale[i] * (static_cast<T>(block.c[i]) * (block.f[i] - block.tau[i])));
        out[i] = block.keep[i] ? g : T(0);
      }
    }
    if (!direct) narrow(out, count, p.gradient, p.student.dtype, start + at);
  }
}

template <class T>
void scale_blocks(const void* gradient, DType dtype, int64_t count, T factor, void* out) {
  T buffer[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    const int run = static_cast<int>(count - at < kBlock ? count - at : kBlock);
    widen(gradient, dtype, at, run, buffer);
    for (int i = 0; i < run; ++i) buffer[i] *= factor;
    narrow(buffer, run, out, dtype, at);
  }
}

void scale(const void* gradient, DType dtype, int64_t count, double factor, void* out) {
  if (dtype == DType::f64) {
    scale_blocks<double>(gradient, dtype, count, factor, out);
  } else {
    scale_blocks<float>(gradient, dtype, count, static_cast<float>(factor), out);
  }
}

#define FDK_QUOTE(name) #name
#define FDK_NAME_OF(name) FDK_QUOTE(name)

}  // namespace

const Kernels kernels = {FDK_NAME_OF(FDKERNELS_ISA), reduce<float>, reduce<double>, apply<float>, apply<double>, scale};

}  // namespace fdkernels::FDKERNELS_ISA
