// The sums of the op adversarial's terms over a batch, by several threads.
#pragma once

#include <vector>

#include "adversarial/cpu/loops.h"
#include "core/cpu/isa.h"
#include "core/cpu/passes.h"

namespace fdkernels::cpu {

// The sum of each sample's terms; stores their gradients.
inline std::vector<double> sums_of_terms(const Adversarial& p, const Threads& threads) {
  // Where other processes keep the cores busy, a thread that waits for another one costs milliseconds: share nothing
  // that takes less than a tenth of one.
  constexpr int64_t kGrain = 65536;
  const AdversarialFunction sum = by_isa(baseline::adversarial, v3::adversarial, v4::adversarial);
  return sum_elements(
      p.batch, p.elements, threads, [&](int64_t b, int64_t begin, int64_t end) { return sum(p, b, begin, end); },
      kGrain);
}

}  // namespace fdkernels::cpu
