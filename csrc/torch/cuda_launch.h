// From a call's shape to its launches, for any op with the kernels of core/cuda/schedules.cuh.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/planning.h"
#include "torch/cuda_target.h"

namespace fdkernels::ops {

// Whether every vector of an N-sized tensor is aligned to its size. Absent tensors are.
inline bool is_aligned(const Samples& samples, int64_t batch, int vector) {
  if (samples.data == nullptr) return true;
  const auto bytes = static_cast<uintptr_t>(vector * size_of(samples.dtype));
  return reinterpret_cast<uintptr_t>(samples.data) % bytes == 0 && (batch == 1 || samples.batch_stride % vector == 0);
}

// The schedules that FDKERNELS_CUDA_PLAN allows, in tests and experiments.
inline Allowed allowed_by_environment() {
  const char* text = std::getenv("FDKERNELS_CUDA_PLAN");
  Allowed allowed;
  expect(parse_allowed(text == nullptr ? "" : text, &allowed), "FDKERNELS_CUDA_PLAN: expected ", kAllowed, ", got '",
         text, "'");
  return allowed;
}

// A call's ticket: the stream's, or zeroed memory of its own.
inline unsigned* take_tickets(const Target& target, const Tensor& like, std::vector<Workspace>& memory) {
  if (unsigned* tickets = cuda::take_tickets(target.device, target.stream)) return tickets;
  double* zeros = memory.emplace_back(cuda::kTicket / 2, like).take(cuda::kTicket / 2);
  cuda::zero(zeros, cuda::kTicket * sizeof(unsigned), target.stream);
  return reinterpret_cast<unsigned*>(zeros);
}

// Warns once per process.
inline void warn_of_refusal(const char* op, int64_t blocks) {
  static const bool warned = [&] {
    const std::string text =
        "fdkernels: a cooperative launch of " + std::to_string(blocks) +
        " blocks, one a multiprocessor, was refused (a green context, a limit of MPS): calls go on with fewer blocks, "
        "more slowly, and lose time to the refusals. FDKERNELS_CUDA_PLAN=cluster does without such launches, where a "
        "cluster can hold a sample.";
    aoti_torch_warn(op, __FILE__, __LINE__, text.c_str());
    return true;
  }();
  static_cast<void>(warned);
}

// Calls start(plan), and again with a plan of fewer blocks while it returns false: the device has refused the launch.
// Each plan follows `work`, which start() may change: launches that are queued need not be planned again.
template <class Start>
void launch_planned(const char* op, const Workload& work, const Target& target, const Start& start) {
  DeviceLimits limits = *target.limits;
  int64_t refused = 0;  // blocks
  for (;;) {
    const Plan planned = plan(work, limits, allowed_by_environment());
    if (start(planned)) {
      if (refused > 0) warn_of_refusal(op, refused);  // not earlier: torch loses an error that follows a warning
      return;
    }
    limits.multiprocessors = static_cast<int>(planned.blocks()) / 2;
    refused = std::max(refused, planned.blocks());
    expect(limits.multiprocessors > 0, op,
           ": no block of a cooperative grid can be resident here; FDKERNELS_CUDA_PLAN=cluster does without, where a"
           " cluster can hold a sample");
  }
}

}  // namespace fdkernels::ops
