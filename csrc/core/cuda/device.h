// The device that a call runs on: its limits, its tickets, its streams, and how a planned call starts there.
#pragma once

#include "call.h"

namespace fdkernels::cuda {

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

// Starts the flagship kernel that the plan names; false where this context cannot hold a grid's blocks all at once.
bool start(const Call& call, const Plan& plan, Loads loads, bool general, int device, void* stream);

}  // namespace fdkernels::cuda
