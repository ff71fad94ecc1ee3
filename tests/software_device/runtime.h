// The state behind CUDA's runtime: streams, graphs, functions, and the memory that a call holds.
//
// A stream's work runs as soon as it comes, unless a test holds it back to let streams overlap. Captured work goes into
// a graph. A call's tensors live as long as work that uses them may still run.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "grid.h"
#include "include/cuda_runtime.h"

// The architecture of this library's kernels, as in 90; the namespace of its ops.
extern const int software_architecture;
extern const char* const software_namespace;

namespace software {

// A recorded point of a stream.
struct Mark {
  bool reached = false;
  Knowledge done;  // at that point, in a run
};

// A launch, a mark to record, or a mark to wait for; the other two are null.
struct Work {
  std::shared_ptr<Launch> launch;  // of a kernel
  std::shared_ptr<Mark> record, wait;
};

// The memory that a call of an op holds.
struct Holding {
  std::vector<uintptr_t> regions;
  std::vector<AtenTensorHandle> tensors;

  Holding() = default;
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;
  ~Holding();
};

struct Graph {
  std::vector<Work> work;
  std::vector<std::shared_ptr<Holding>> holdings;
};

}  // namespace software

struct SoftwareStream {
  unsigned long long id = 0;
  std::deque<software::Work> queue;
  std::unique_ptr<software::Graph> capture;
  bool capture_failed = false;
  software::Knowledge done;  // in a run: what its next launch knows
  bool busy = false;
};

struct SoftwareEvent {
  std::shared_ptr<software::Mark> mark;  // the last one recorded; null: none
};

namespace software {

struct Runtime {
  std::vector<Description> devices{Description{}};
  int device = 0;
  bool holds_back = false;                                    // until the test synchronizes
  std::array<const void*, 2> of_host{};                       // the data of tensors that are on the host
  std::map<std::pair<int, const void*>, Function> functions;  // by device and kernel
  std::map<const void*, std::pair<std::string, std::string>> names;
  std::map<uintptr_t, size_t> tickets;  // memory of the module that is zero whenever nothing runs
  SoftwareStream main;
  std::vector<std::unique_ptr<SoftwareStream>> streams;
  std::vector<std::unique_ptr<SoftwareEvent>> events;
  std::map<void*, std::unique_ptr<char[]>> allocated;
  cudaError_t last = cudaSuccess;     // error, until it is asked for
  SoftwareStream* current = nullptr;  // torch's stream; null: main
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::shared_ptr<Holding> call;  // of the running op
  std::vector<std::shared_ptr<Holding>> kept;
  std::string fault, launches;
  unsigned long long ids = 1;

  SoftwareStream& stream(cudaStream_t given) {
    return given == nullptr ? main : *given;
  }
  std::vector<SoftwareStream*> all() {
    std::vector<SoftwareStream*> found{&main};
    for (const auto& stream : streams) found.push_back(stream.get());
    return found;
  }
  const Description& description() const {
    return devices[static_cast<size_t>(device)];
  }
};

Runtime& runtime();
// For calls that are not allowed during a capture: returns an error, and the capture is lost.
cudaError_t refused_in_capture();
// Returns its argument; if that is an error, cudaGetLastError gives it once.
cudaError_t reported(cudaError_t status);
// Puts work into a stream, or into the graph that it is captured into.
cudaError_t submit(SoftwareStream& stream, Work work);

}  // namespace software
