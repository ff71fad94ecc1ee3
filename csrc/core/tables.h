// Reads of small operands (Table): element i of a sample reads entry (i / inner) % entries of its row.
#pragma once

#include "core/tensors.h"

namespace fdkernels {

namespace {

FDK_HOST_DEVICE inline double table_entry(const Table& table, int64_t b, int64_t entry) {
  const int64_t at = b * table.batch_stride + entry;
  return table.dtype == DType::f64 ? static_cast<const double*>(table.data)[at]
                                   : static_cast<const float*>(table.data)[at];
}

// i / by, without a 64-bit division if 32 bits are enough.
FDK_HOST_DEVICE inline int64_t divided(int64_t i, int64_t by) {
  if (((i | by) >> 32) == 0) return static_cast<uint32_t>(i) / static_cast<uint32_t>(by);
  return i / by;
}

FDK_HOST_DEVICE inline bool has_table(const Table& table) {
  return table.data != nullptr && table.entries > 1;
}

// The entry of element i, and the element's position in the run of elements that read this entry.
struct Place {
  int64_t entry, within;
};

FDK_HOST_DEVICE inline Place place_of(const Table& table, int64_t i) {
  if (table.entries == 1) return {0, i};
  const int64_t run = divided(i, table.inner), within = i - run * table.inner;
  // The second division is only for entries that repeat within a sample.
  return {run < table.entries ? run : run - divided(run, table.entries) * table.entries, within};
}

// The number of elements from i on that read the same entry as i, at most `most`.
FDK_HOST_DEVICE inline int64_t run_at(const Table& table, int64_t i, int64_t most) {
  if (table.entries == 1) return most;
  const int64_t left = table.inner - place_of(table, i).within;
  return left < most ? left : most;
}

// Calls use(k, entry) for elements i + k, k < W.
template <int W, class Use>
FDK_HOST_DEVICE inline void for_entries(const Table& table, int64_t i, const Use& use) {
  auto [entry, within] = place_of(table, i);
  const bool one = table.entries == 1 || table.inner % W == 0;
  FDK_UNROLL
  for (int k = 0; k < W; ++k) {
    use(k, entry);
    if (!one && ++within == table.inner) {
      within = 0;
      entry = entry + 1 < table.entries ? entry + 1 : 0;
    }
  }
}

template <int W, class T>
FDK_HOST_DEVICE inline void multiply(const Table& table, int64_t b, int64_t i, T (&values)[W]) {
  for_entries<W>(table, i, [&](int k, int64_t entry) { values[k] *= static_cast<T>(table_entry(table, b, entry)); });
}

// Bit k of the result: whether element i + k is unmasked.
template <int W>
FDK_HOST_DEVICE inline unsigned kept_bits(const Table& mask, int64_t b, int64_t i) {
  if (mask.data == nullptr) return ~0u;
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + b * mask.batch_stride;
  unsigned bits = 0;
  for_entries<W>(mask, i, [&](int k, int64_t entry) { bits |= static_cast<unsigned>(row[entry] != 0) << k; });
  return bits;
}

// The number of kept entries among entries first, first + step, ... of all rows of a mask.
FDK_HOST_DEVICE inline int64_t kept_entries(const Table& mask, int64_t rows, int64_t first, int64_t step) {
  const uint8_t* data = static_cast<const uint8_t*>(mask.data);
  int64_t kept = 0;
  for (int64_t j = first; j < rows * mask.entries; j += step) {
    const int64_t row = divided(j, mask.entries);
    kept += data[row * mask.batch_stride + j - row * mask.entries] != 0;
  }
  return kept;
}

FDK_HOST_DEVICE inline double table_value(const Table& table, int64_t b, int64_t i) {
  return table.data == nullptr ? table.fixed : table_entry(table, b, place_of(table, i).entry);
}

}  // namespace

}  // namespace fdkernels
