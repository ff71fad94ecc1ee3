// torch's threads, as core/cpu/threads.h takes them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "core/cpu/threads.h"

namespace fdkernels::ops {

inline cpu::Threads threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [&](int64_t begin, int64_t end) { body(begin, end, context); });
          }};
}

}  // namespace fdkernels::ops
