// The CUDA kernels' index arithmetic, for test_indices.py.
#include "core/share.h"
#include "core/tables.h"

using namespace fdkernels;

template <int W>
static void entries(const Table& table, int64_t i, int64_t* found) {
  for_entries<W>(table, i, [&](int k, int64_t entry) { found[k] = entry; });
}

extern "C" {

void part_of_rank(int64_t elements, int64_t share, int rank, int64_t* found) {
  const Part part = part_of(elements, share, 0, rank, 0, 1);
  found[0] = part.begin, found[1] = part.end;
}

void entries_of(int width, int64_t rows, int64_t inner, int64_t i, int64_t* found) {
  const Table table{nullptr, DType::f32, 0, rows, inner};
  if (width == 2) entries<2>(table, i, found);
  if (width == 4) entries<4>(table, i, found);
  if (width == 8) entries<8>(table, i, found);
}

int64_t quotient(int64_t i, int64_t by) {
  return divided(i, by);
}
}
