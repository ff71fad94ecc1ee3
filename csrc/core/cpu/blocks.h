// A CPU op's loop over elements, in blocks of up to kBlock: reads of a block's operands, and passes over the blocks.
// Inputs are converted to the type of the arithmetic; table entries are repeated for the elements that read them.
//
// An op provides a Loop, made for one sample:
//
//   Sums                       of elements
//   enter(at, &count)          begins a block at element `at`; may lower `count` to elements that share table entries
//   sum(at, count, sums)       sets the block's sums; returns false if they cannot be trusted: infinite, NaN, too small
//   sum_carefully(at, count, sums)  replaces such sums by the same block's, added element by element in double
//   add(total, sums)           adds a block's sums to the total
//   store(at, count, factor)   stores the block's gradient, or gradients; factor: what store_blocks() got
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/numbers.h"
#include "core/tables.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fdkernels {

namespace {

// ---- stored numbers, converted to the type of the arithmetic (widen) and back (narrow)

template <class T>
void widen(const void* source, DType dtype, int64_t offset, int count, T* out) {
  with_type<AnyType>(dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* in = static_cast<const Stored*>(source) + offset;
    int i = 0;
#ifdef __F16C__
    if constexpr (std::is_same_v<Stored, Half> && std::is_same_v<T, float>) {
      for (; i + 8 <= count; i += 8) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
      }
    }
#endif
    for (; i < count; ++i) out[i] = static_cast<T>(number(in[i]));
  });
}

template <class T>
void narrow(const T* in, int count, void* target, DType dtype, int64_t offset) {
  with_type<AnyType>(dtype, [&](auto type) {
    using Stored = decltype(type);
    Stored* out = static_cast<Stored*>(target) + offset;
    int i = 0;
#ifdef __F16C__
    if constexpr (std::is_same_v<Stored, Half> && std::is_same_v<T, float>) {
      for (; i + 8 <= count; i += 8) {
        const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
      }
    }
#endif
    for (; i < count; ++i) put(static_cast<decltype(number(out[i]))>(in[i]), out[i]);
  });
}

// ---- blocks of operands

constexpr int kBlock = 512;
// The fewest elements with the same table entries that are worth a block of their own.
constexpr int64_t kShortestRun = 64;

template <class T>
constexpr DType kNative = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

// A block of an N-sized input: in the input's own memory if that has type T, else converted into `buffer`.
template <class T>
const T* load(const Samples& samples, int64_t b, int64_t begin, int count, T* buffer) {
  const int64_t offset = b * samples.batch_stride + begin;
  if (samples.dtype == kNative<T>) return static_cast<const T*>(samples.data) + offset;
  widen(samples.data, samples.dtype, offset, count, buffer);
  return buffer;
}

// Whether the table's entries are shared by runs of elements that are worth loops of their own.
inline bool has_long_runs(const Table& table) {
  return !has_table(table) || table.inner >= kShortestRun;
}

// The offset of element i's entry in a table's data.
inline int64_t entry_at(const Table& table, int64_t b, int64_t i) {
  return b * table.batch_stride + place_of(table, i).entry;
}

// Expands a table to a block, each entry repeated for the elements that read it. copy(entry, run, to) is for entries in
// a row, fill(entry, run, to) for one entry that all elements of the run read.
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
  expand(
      table, b, begin, count, out, [&](int64_t at, int run, T* to) { widen(table.data, table.dtype, at, run, to); },
      [&](int64_t at, int run, T* to) {
        T value{};
        widen(table.data, table.dtype, at, 1, &value);
        for (int i = 0; i < run; ++i) to[i] = value;
      });
}

// The table's value of each element of a block, in double.
inline void expand_values(const Table& table, int64_t b, int64_t begin, int count, double* out) {
  if (table.data != nullptr) return expand_numbers(table, b, begin, count, out);
  for (int i = 0; i < count; ++i) out[i] = table.fixed;
}

// A mask's value, as wide as the type of the arithmetic: all bits are set, or none. No compiler makes it a branch.
template <class T>
struct Keep {
  using Bits = std::conditional_t<sizeof(T) == sizeof(double), uint64_t, uint32_t>;
  Bits bits;
};

inline float kept_or_zero(float v, Keep<float> keep) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(v) & keep.bits);
}

inline double kept_or_zero(double v, Keep<double> keep) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & keep.bits);
}

inline double kept_or_zero(double v, Keep<float> keep) {
  return kept_or_zero(v, Keep<double>{static_cast<uint64_t>(static_cast<int32_t>(keep.bits))});
}

template <class T>
Keep<T> keep_if(bool kept) {
  return {kept ? ~typename Keep<T>::Bits(0) : 0};
}

template <class T>
void expand_mask(const Table& mask, int64_t b, int64_t begin, int count, Keep<T>* out) {
  const uint8_t* data = static_cast<const uint8_t*>(mask.data);
  expand(
      mask, b, begin, count, out,
      [&](int64_t at, int run, Keep<T>* to) {
        for (int i = 0; i < run; ++i) to[i] = keep_if<T>(data[at + i] != 0);
      },
      [&](int64_t at, int run, Keep<T>* to) {
        for (int i = 0; i < run; ++i) to[i] = keep_if<T>(data[at] != 0);
      });
}

// ---- sums of a block

// The sum over elements [0, count) of value_at(i), in kLanes running sums in double: as many elements are one step of a
// vectorized loop.
template <int kLanes, class ValueAt>
double sum_in_double(int64_t count, const ValueAt& value_at) {
  alignas(64) double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += value_at(i + lane);
  }
  for (int lane = 0; i + lane < count; ++lane) sums[lane] += value_at(i + lane);
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// A sum has kLanes running sums in T, one for each of the values that 64 bytes store, and each takes kAdded additions
// before all become double: in a long running float sum of equal numbers, each addition may round the same way. The
// lanes are written down because a compiler may vectorize with fewer lanes, or not at all, and would then make the runs
// longer.
template <class Stored>
constexpr int kLanes = 64 / sizeof(Stored);
constexpr int kAdded = 16;
static_assert(kBlock % (kLanes<Bf16> * kAdded) == 0);

// What an element adds to three sums; the first may be of a wider type.
template <class First, class T>
struct Addends {
  First first;
  T second, third;
};

template <class First, class T>
Addends(First, T, T) -> Addends<First, T>;

struct Totals {
  double first = 0, second = 0, third = 0;
};

// Sums over elements [0, count) of addends_at(i).
template <int kLanes, class AddendsAt>
Totals sum_in_lanes(int count, const AddendsAt& addends_at) {
  using Each = decltype(addends_at(0));
  using First = decltype(Each::first);
  using T = decltype(Each::second);
  alignas(64) double totals[3][kLanes] = {};
  for (int begin = 0; begin < count; begin += kLanes * kAdded) {
    const int end = count - begin < kLanes * kAdded ? count : begin + kLanes * kAdded;
    alignas(64) First first[kLanes] = {};
    alignas(64) T second[kLanes] = {}, third[kLanes] = {};
    const auto add = [&](int i, int lane) {
      const Each each = addends_at(i);
      first[lane] += each.first;
      second[lane] += each.second;
      third[lane] += each.third;
    };
    int at = begin;
    for (; at + kLanes <= end; at += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) add(at + lane, lane);
    }
    for (int lane = 0; at + lane < end; ++lane) add(at + lane, lane);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      totals[0][lane] += static_cast<double>(first[lane]);
      totals[1][lane] += static_cast<double>(second[lane]);
      totals[2][lane] += static_cast<double>(third[lane]);
    }
  }
  Totals sums;
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.first += totals[0][lane];
    sums.second += totals[1][lane];
    sums.third += totals[2][lane];
  }
  return sums;
}

// ---- passes over blocks

// Calls use(at, count) for each block.
template <class Loop, class Use>
void for_blocks(Loop& loop, int64_t begin, int64_t end, const Use& use) {
  for (int64_t at = begin; at < end;) {
    int64_t count = end - at < kBlock ? end - at : kBlock;
    loop.enter(at, &count);
    use(at, static_cast<int>(count));
    at += count;
  }
}

template <class Loop>
typename Loop::Sums sum_blocks(Loop& loop, int64_t begin, int64_t end) {
  typename Loop::Sums total;
  for_blocks(loop, begin, end, [&](int64_t at, int count) {
    typename Loop::Sums sums;
    if (!loop.sum(at, count, sums)) loop.sum_carefully(at, count, sums);
    loop.add(total, sums);
  });
  return total;
}

template <class Loop, class Factor>
void store_blocks(Loop& loop, int64_t begin, int64_t end, const Factor& factor) {
  for_blocks(loop, begin, end, [&](int64_t at, int count) { loop.store(at, count, factor); });
}

}  // namespace

}  // namespace fdkernels
