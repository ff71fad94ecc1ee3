// A CPU op's two passes over each sample: the first adds up the sums, which decide the sample's coefficient; the second
// stores the gradient. Each input is read from memory once if the second pass finds it in cache:
//
//   whole samples   one thread takes a sample through both passes; the sample stays in that core's L2
//   split samples   all threads sum one sample in chunks, then store its gradient; it stays in the shared cache
//
// Chunks depend on the sample's size alone and their sums are added in order, so results have the same bits for any
// number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "core/cpu/threads.h"

namespace fdkernels::cpu {

constexpr int64_t kChunk = 16384;          // elements whose sums are added up apart, by one thread
constexpr int64_t kWholeSample = 1 << 20;  // bytes of inputs that stay in a core's L2

// Op has Sums; reduce(b, begin, end) returns the sums of these elements; add(b, sums) adds them to sample b's;
// finish(b) computes its coefficient; stores() says whether there is a gradient; store(b, begin, end) stores it for
// these elements. bytes: of a sample's inputs.
template <class Op>
void pass_samples(Op& op, int64_t batch, int64_t elements, int64_t bytes, const Threads& threads) {
  const auto piece = [&](int64_t i) { return std::min(elements, i * kChunk); };
  const int64_t chunks = (elements + kChunk - 1) / kChunk;
  if (chunks <= 1 || (bytes <= kWholeSample && batch >= threads.count)) {
    parallel(threads, batch, std::max<int64_t>(1, kGrain / elements), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t i = 0; i < chunks; ++i) op.add(b, op.reduce(b, piece(i), piece(i + 1)));
        op.finish(b);
        if (op.stores()) op.store(b, 0, elements);
      }
    });
    return;
  }
  std::vector<typename Op::Sums> partial(chunks);
  for (int64_t b = 0; b < batch; ++b) {
    parallel(threads, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) partial[i] = op.reduce(b, piece(i), piece(i + 1));
    });
    for (const typename Op::Sums& sums : partial) op.add(b, sums);
    op.finish(b);
    if (!op.stores()) continue;
    parallel(threads, chunks, 1, [&](int64_t begin, int64_t end) { op.store(b, piece(begin), piece(end)); });
  }
}

// For an op whose elements need no sum: sum(b, begin, end) is called for parts of all samples, in parallel, and returns
// what they add to sample b's sum. Parts depend on the sample's size alone, and are added in order. grain: elements
// below which a second thread does not pay.
template <class Sum>
std::vector<double> sum_elements(int64_t batch, int64_t elements, const Threads& threads, const Sum& sum,
                                 int64_t grain = kGrain) {
  const int64_t chunks = (elements + kChunk - 1) / kChunk;
  std::vector<double> parts(batch * chunks), sums(batch);
  parallel(threads, batch * chunks, std::max<int64_t>(1, grain / std::min(elements, kChunk)),
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               const int64_t b = i / chunks, first = (i - b * chunks) * kChunk;
               parts[i] = sum(b, first, std::min(elements, first + kChunk));
             }
           });
  for (int64_t i = 0; i < batch * chunks; ++i) sums[i / chunks] += parts[i];
  return sums;
}

// For an op without sums: store(b, begin, end) is called for parts of all samples, in parallel.
template <class Store>
void pass_elements(int64_t batch, int64_t elements, const Threads& threads, const Store& store) {
  parallel(threads, batch * elements, kGrain * 4, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t b = at / elements, first = b * elements, last = std::min(end, first + elements);
      store(b, at - first, last - first);
      at = last;
    }
  });
}

}  // namespace fdkernels::cpu
