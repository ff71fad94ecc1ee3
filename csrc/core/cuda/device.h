// State of each device in this process: its limits, tickets, current stream, and the kernels that are prepared there.
#pragma once

#include <vector>

#include "core/plan.h"

namespace fdkernels::cuda {

// Words of a ticket: counters that the blocks of one launch share. The first counts blocks that are done; then come two
// for each team of a grid, its blocks' arrivals at even and at odd turns. Even, since doubles may provide the memory.
constexpr int kTicket = 2 + 2 * kMaxTeams;

// Registers kernels that the first call on a device loads, since their own first launch may be captured. Each file with
// such kernels has a static object of this type.
struct Kernels {
  template <class... Kernel>
  explicit Kernels(Kernel*... kernels) {
    (all().push_back(reinterpret_cast<const void*>(kernels)), ...);
  }
  static std::vector<const void*>& all();
};

// Registers a kernel of the cluster schedule. limits() asks CUDA how many clusters of it a device can hold.
struct ClusterKernel {
  explicit ClusterKernel(const void* kernel) {
    any() = kernel;
  }
  static const void*& any();
};

// A device's limits; asks the CUDA runtime only once. Throws std::runtime_error, like all functions here.
const DeviceLimits& limits(int device);

// torch's current stream on a device.
void* current_stream(int device);

// Sets the current device of the CUDA runtime that is linked into this library.
void set_device(int device);

// A ticket: kTicket zeros that one launch counts in and leaves zero. Null if none is left. Launches that may overlap
// must not share one: each stream has its own, and so has each call that a graph captures, since a graph may replay on
// any stream.
unsigned* take_tickets(int device, void* stream);

void zero(void* memory, int64_t bytes, void* stream);

// Sets a kernel's attributes on a device, before its first launch there.
void prepare(const void* kernel, Schedule schedule, int device);

}  // namespace fdkernels::cuda
