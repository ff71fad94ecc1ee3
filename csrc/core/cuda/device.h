// The device that a call runs on: its limits, its tickets, its streams, and how a planned call starts there.
#pragma once

#include <vector>

#include "core/plan.h"

namespace fdkernels::cuda {

// Words of a ticket, an even number: blocks that are done, and arrivals at even and at odd turns of each team of a
// grid.
constexpr int kTicket = 2 + 2 * kMaxTeams;

// Kernels that a first call on a device loads, in case that their own first launch is captured. A static object of each
// file that has some.
struct Kernels {
  template <class... Kernel>
  explicit Kernels(Kernel*... kernels) {
    (all().push_back(reinterpret_cast<const void*>(kernels)), ...);
  }
  static std::vector<const void*>& all();
};

// A kernel of the cluster schedule, by which the device is asked how many clusters it holds.
struct ClusterKernel {
  explicit ClusterKernel(const void* kernel) {
    any() = kernel;
  }
  static const void*& any();
};

// What the CUDA runtime says of a device, asked once. Throws std::runtime_error, as all of these do.
const DeviceLimits& limits(int device);

// torch's current stream on a device.
void* current_stream(int device);

// Makes a device current for CUDA's runtime in this library.
void set_device(int device);

// kTicket zeros that one launch counts in and leaves zero, or null where none is left. Launches that may overlap never
// share them: each stream has its own, and so has each call that a graph captures, since a graph replays on any stream.
unsigned* take_tickets(int device, void* stream);

void zero(void* memory, int64_t bytes, void* stream);

// Sets a kernel's attributes on a device, before its first launch there.
void prepare(const void* kernel, Schedule schedule, int device);

}  // namespace fdkernels::cuda
