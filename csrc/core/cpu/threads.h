// Loops over several threads. The threads are torch's (csrc/torch/cpu_threads.h); this file does not depend on torch.
#pragma once

#include <cstdint>

namespace fdkernels::cpu {

constexpr int64_t kGrain = 8192;  // elements below which a second thread does not pay

// Runs body over [0, count) in parallel pieces of at least `grain`.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);

struct Threads {
  int64_t count;
  ParallelFor parallel_for;
};

template <class Body>
void parallel(const Threads& threads, int64_t count, int64_t grain, const Body& body) {
  if (threads.count <= 1 || count <= grain) {
    body(int64_t{0}, count);
    return;
  }
  threads.parallel_for(
      count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fdkernels::cpu
