// The state behind CUDA's runtime: streams, graphs, functions, and what a call has of memory.
//
// A stream's work runs as soon as it comes, unless a test holds it back to let streams overlap. Work that is captured
// goes into a graph. Tensors that a call makes live as long as something may still run that uses them.
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

// Of the kernels in this library, as in 90; and of its ops.
extern const int software_architecture;
extern const char* const software_namespace;

namespace software {

// What has been recorded of a stream.
struct Mark {
  bool reached = false;
  Knowledge done;  // then, in a run
};

// A launch, or something recorded, or a wait for it: the other two are null.
struct Work {
  std::shared_ptr<Launch> launch;  // of a kernel
  std::shared_ptr<Mark> record, wait;
};

// What a call of an op has of memory.
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
  software::Knowledge done;  // in a run: what its launches have left
  bool busy = false;
};

struct SoftwareEvent {
  std::shared_ptr<software::Mark> mark;  // the last; null: never recorded
};

namespace software {

struct Runtime {
  std::vector<Description> devices{Description{}};
  int device = 0;
  bool holds_back = false;                                    // until the test synchronizes
  std::array<const void*, 2> of_host{};                       // the data of the tensors that are not the device's
  std::map<std::pair<int, const void*>, Function> functions;  // by device and kernel
  std::map<const void*, std::pair<std::string, std::string>> names;
  std::map<uintptr_t, size_t> tickets;  // memory of the module that is zero whenever nothing runs
  SoftwareStream main;
  std::vector<std::unique_ptr<SoftwareStream>> streams;
  std::vector<std::unique_ptr<SoftwareEvent>> events;
  std::map<void*, std::unique_ptr<char[]>> allocated;
  cudaError_t last = cudaSuccess;     // error, until it is asked for
  SoftwareStream* current = nullptr;  // of torch; null: main
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::shared_ptr<Holding> call;  // of the op that runs
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
// For a call that a capture can't have: an error, and the capture is lost.
cudaError_t refused_in_capture();
// Its argument, which cudaGetLastError gives once if it is an error.
cudaError_t reported(cudaError_t status);
// Puts work into a stream, or into the graph that it is captured into.
cudaError_t submit(SoftwareStream& stream, Work work);

}  // namespace software
