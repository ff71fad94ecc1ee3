// The flagship's element loops. Reads x, tau, f once per pass in blocks that stay in L1; a sample's second pass (apply)
// finds them in cache. Half precision is widened into block buffers on load and rounded once on store.
//
// Everything here lives in an unnamed namespace: an inline function shared between instruction sets could be linked
// from the widest one into the path of a processor that lacks it.

#include "fdiv_kernel.h"

#include <bit>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fdkernels::FDKERNELS_ISA {

namespace {

constexpr int kBlock = 512;

inline bool is_finite(double v) {
  return v - v == 0;
}

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// IEEE half to single: shift the exponent into place, then let a multiplication normalize subnormals.
inline float half_to_float(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t result = (bits & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : finite;
  return std::bit_cast<float>(result | (static_cast<uint32_t>(bits & 0x8000u) << 16));
}

// Round to nearest even. Adding a power of two at the half's last place makes the float adder round.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536
  if (magnitude < 0x38800000u) {                                               // subnormal
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

template <class T>
void widen(const void* source, DType dtype, int64_t offset, int count, T* out) {
  switch (dtype) {
    case DType::f32: {
      const float* in = static_cast<const float*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      return;
    }
    case DType::f64: {
      const double* in = static_cast<const double*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      return;
    }
    case DType::bf16: {
      const uint16_t* in = static_cast<const uint16_t*>(source) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<T>(bf16_to_float(in[i]));
      return;
    }
    case DType::f16: {
      const uint16_t* in = static_cast<const uint16_t*>(source) + offset;
      int i = 0;
#ifdef __F16C__
      if constexpr (sizeof(T) == sizeof(float)) {
        for (; i + 8 <= count; i += 8) {
          const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
          _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
        }
      }
#endif
      for (; i < count; ++i) out[i] = static_cast<T>(half_to_float(in[i]));
      return;
    }
  }
}

template <class T>
void narrow(const T* in, int count, void* target, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::f32: {
      float* out = static_cast<float*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
      return;
    }
    case DType::f64: {
      double* out = static_cast<double*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = static_cast<double>(in[i]);
      return;
    }
    case DType::bf16: {
      uint16_t* out = static_cast<uint16_t*>(target) + offset;
      for (int i = 0; i < count; ++i) out[i] = float_to_bf16(static_cast<float>(in[i]));
      return;
    }
    case DType::f16: {
      uint16_t* out = static_cast<uint16_t*>(target) + offset;
      int i = 0;
#ifdef __F16C__
      if constexpr (sizeof(T) == sizeof(float)) {
        for (; i + 8 <= count; i += 8) {
          const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
        }
      }
#endif
      for (; i < count; ++i) out[i] = float_to_half(static_cast<float>(in[i]));
      return;
    }
  }
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

template <class T, bool kReadX>
Sums reduce_plain(const Block<T>& block, int count) {
  const T *x = block.x, *tau = block.tau, *f = block.f;
  T distance = 0, energy = 0, gap = 0;
#pragma omp simd reduction(+ : distance, energy, gap)
  for (int i = 0; i < count; ++i) {
    const T d = f[i] - tau[i];
    energy += d * d;
    gap += d < 0 ? -d : d;
    if constexpr (kReadX) {
      const T e = x[i] - tau[i];
      distance += e < 0 ? -e : e;
    }
  }
  return {static_cast<double>(distance), static_cast<double>(energy), static_cast<double>(gap), false};
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
    gap += d < 0 ? -d : d;
    if constexpr (kReadX) {
      const double x0 = block.a[i] * block.noisy[i] + block.c[i] * block.tau[i];
      const double e = static_cast<double>(block.x[i]) - x0;
      distance += e < 0 ? -e : e;
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
    const bool keep = plain || block.keep[i];
    const double c = plain ? 1.0 : block.c[i], scale = plain ? 1.0 : block.scale[i];
    const double tau = block.tau[i], f = block.f[i];
    const double d = c * (f - tau);
    bool finite = is_finite(tau) && is_finite(f) && is_finite(c) && is_finite(scale);
    if (keep || is_finite(d)) sums.gap += std::fabs(d);
    if (keep) sums.energy += scale * d * scale * d;
    if (read_x) {
      const double noisy = plain ? 0.0 : block.noisy[i], a = plain ? 0.0 : block.a[i];
      const double e = block.x[i] - (a * noisy + c * tau);
      if (keep || is_finite(e)) sums.distance += std::fabs(e);
      if (p.dmd_scale) finite = finite && is_finite(block.x[i]) && is_finite(noisy) && is_finite(a);
    }
    sums.nonfinite |= keep && !finite;
  }
  return sums;
}

// Sums of squares that float32 can hold without overflow, and large enough that what underflowed in them is nothing.
template <class T>
bool trustworthy(const Sums& sums) {
  const bool finite = is_finite(sums.distance) && is_finite(sums.gap) && is_finite(sums.energy);
  return finite && (sizeof(T) == sizeof(double) || sums.energy > 1e-28);
}

template <class T>
Sums reduce(const Problem& p, int64_t b, int64_t begin, int64_t end) {
  const bool read_x = p.dmd_scale || p.with_stats, plain = is_plain(p);
  Block<T> block;
  if (!plain) fill_neutral(p, block);
  Sums total;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    load_predictions(p, b, at, count, block);
    if (read_x) block.x = load(p.student, b, at, count, block.x_buffer);
    if (!plain) load_general(p, b, at, count, read_x, block);
    Sums sums;
    if (plain) {
      sums = read_x ? reduce_plain<T, true>(block, count) : reduce_plain<T, false>(block, count);
    } else {
      sums = read_x ? reduce_general<T, true>(block, count) : reduce_general<T, false>(block, count);
    }
    total.add(trustworthy<T>(sums) ? sums : reduce_carefully(p, block, count, read_x));
  }
  return total;
}

template <class T>
void apply(const Problem& p, int64_t b, int64_t begin, int64_t end, double coefficient) {
  const bool plain = is_plain(p);
  const T w = static_cast<T>(coefficient);
  Block<T> block;
  if (!plain) fill_neutral(p, block);
  T out_buffer[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    load_predictions(p, b, at, count, block);
    const int64_t offset = b * p.elements + at;
    const bool direct = p.student.dtype == kNative<T>;
    T* out = direct ? static_cast<T*>(p.gradient) + offset : out_buffer;
    const T *tau = block.tau, *f = block.f;
    if (plain) {
#pragma omp simd
      for (int i = 0; i < count; ++i) out[i] = w * (f[i] - tau[i]);
    } else {
      load_general(p, b, at, count, false, block);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const T g = w * (block.scale[i] * (static_cast<T>(block.c[i]) * (f[i] - tau[i])));
        out[i] = block.keep[i] ? g : T(0);
      }
    }
    if (!direct) narrow(out, count, p.gradient, p.student.dtype, offset);
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
