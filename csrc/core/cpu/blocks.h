// A CPU op's loop over elements, in blocks of up to kBlock: reads of a block's operands, and passes over the blocks.
// Inputs are converted to the type of the arithmetic; table entries are repeated for the elements that read them.
//
// An op provides a Loop, made for one sample:
//
//   Sums                       of elements
//   enter(at, &count)          begins a block at element `at`; may lower `count` to elements that share table entries
//   sum(at, count, sums)       sets the block's sums; returns false if they cannot be trusted: infinite, NaN, too small
//   sum_carefully(at, count)   returns the same block's sums, added element by element in double
//   add(total, sums)           adds a block's sums to the total
//   store(at, count, factor)   stores the block's gradient
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <cstring>

#include "core/cpu/convert.h"

namespace fdkernels {

namespace {

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

// The offset of element i's entry in a table's data.
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

// The number of elements from i on that read the same entry as i, at most `most`.
int64_t run_at(const Table& table, int64_t i, int64_t most) {
  const int64_t left = table.inner - i % table.inner;
  return left < most ? left : most;
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

// 1 where an element is kept, else 0: in the type of the arithmetic, so that a loop over elements has one width.
template <class T>
void expand_mask(const Table& mask, int64_t b, int64_t begin, int count, T* out) {
  const uint8_t* data = static_cast<const uint8_t*>(mask.data);
  const auto set = [](uint8_t kept) { return kept != 0 ? T(1) : T(0); };
  expand(
      mask, b, begin, count, out,
      [&](int64_t at, int run, T* to) {
        for (int i = 0; i < run; ++i) to[i] = set(data[at + i]);
      },
      [&](int64_t at, int run, T* to) {
        for (int i = 0; i < run; ++i) to[i] = set(data[at]);
      });
}

template <class Loop>
typename Loop::Sums sum_blocks(Loop& loop, int64_t begin, int64_t end) {
  typename Loop::Sums total;
  for (int64_t at = begin; at < end;) {
    int64_t count = end - at < kBlock ? end - at : kBlock;
    loop.enter(at, &count);
    typename Loop::Sums sums;
    if (!loop.sum(at, static_cast<int>(count), sums)) sums = loop.sum_carefully(at, static_cast<int>(count));
    loop.add(total, sums);
    at += count;
  }
  return total;
}

template <class Loop, class T>
void store_blocks(Loop& loop, int64_t begin, int64_t end, T factor) {
  for (int64_t at = begin; at < end;) {
    int64_t count = end - at < kBlock ? end - at : kBlock;
    loop.enter(at, &count);
    loop.store(at, static_cast<int>(count), factor);
    at += count;
  }
}

}  // namespace

}  // namespace fdkernels
