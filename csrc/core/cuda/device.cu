// Limits, tickets and streams of each device: see device.h.
#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

#include "core/cuda/device.h"
#include "core/cuda/launch.h"

namespace fdkernels::cuda {

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error("fdkernels: " + what + ": " + cudaGetErrorString(status));
}

namespace {

constexpr int kMaxDevices = 64;
// Tickets of a device: one for each captured call and one for each stream. Captured calls leave some to the streams.
constexpr int kTickets = 4096, kTicketsOfStreams = 512;

// Zero on every device when the module is loaded. It outlives streams and graphs.
__device__ unsigned ticket_memory[kTickets][kTicket];

// While this lives, a first call may load modules and set attributes even if this thread captures a graph; they do not
// become part of the graph.
class BesideCapture {
 public:
  BesideCapture() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  ~BesideCapture() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
  }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

// Clusters of this size that can be resident at one block per multiprocessor; 0 if they cannot be scheduled.
int active_clusters(int size, const DeviceLimits& limits) {
  if (size == 1) return limits.multiprocessors;
  const void* kernel = ClusterKernel::any();
  // Code for older architectures cannot use clusters, even if the driver has compiled it for this device.
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  if (limits.capability < 90 || code.ptxVersion < 90) return 0;
  const int64_t shared = limits.shared_per_block - kStaticShared;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(size));
  config.blockDim = dim3(kMaxThreads + kMaxWeighing);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int count = 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory");
  // A refusal of these only means that this size cannot be scheduled.
  const bool known = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess;
  if (!known) cudaGetLastError();
  return known ? count : 0;
}

DeviceLimits ask(int device) {
  const BesideCapture relaxed;
  DeviceLimits found{};
  found.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  found.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  found.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  found.shared_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  found.cache = attribute(cudaDevAttrL2CacheSize, device);
  // Two transfers per clock; 1 TB/s if a virtual machine hides the clock. Only the choice of a plan depends on it.
  const double clock = 1e3 * attribute(cudaDevAttrMemoryClockRate, device);
  found.bandwidth = 2 * clock * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
  if (found.bandwidth <= 0) found.bandwidth = 1e12;
  // Load these kernels now, since their first launch may be captured.
  for (const void* kernel : Kernels::all()) {
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  }
  for (int i = 0; i < kClusterSizes; ++i) found.active_clusters[i] = active_clusters(1 << i, found);
  return found;
}

struct Device {
  std::once_flag asked;
  DeviceLimits limits{};
  std::mutex mutex;  // guards the members below
  unsigned* tickets = nullptr;
  int taken = 0;
  std::map<unsigned long long, unsigned*> by_stream;
  std::set<const void*> prepared;  // kernels whose attributes are set
};

Device& device_at(int device) {
  static std::array<Device, kMaxDevices> devices;
  if (device < 0 || device >= kMaxDevices) throw std::runtime_error("fdkernels: device index out of range");
  return devices[static_cast<size_t>(device)];
}

}  // namespace

std::vector<const void*>& Kernels::all() {
  static std::vector<const void*> kernels;
  return kernels;
}

const void*& ClusterKernel::any() {
  static const void* kernel = nullptr;
  return kernel;
}

const DeviceLimits& limits(int device) {
  Device& found = device_at(device);
  std::call_once(found.asked, [&] { found.limits = ask(device); });
  return found.limits;
}

void* current_stream(int device) {
  // Looked up at run time, so that this library also loads beside a torch without CUDA.
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  if (function == nullptr || function(device, &stream) != 0) {
    throw std::runtime_error("fdkernels: this torch has no CUDA stream; is it a CUDA build?");
  }
  return stream;
}

void set_device(int device) {
  const BesideCapture relaxed;  // a first call may load the module
  int current = -1;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current != device) check(cudaSetDevice(device), "cudaSetDevice");
}

unsigned* take_tickets(int device, void* stream) {
  const auto of = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(of, &status), "cudaStreamIsCapturing");
  Device& found = device_at(device);
  const std::lock_guard<std::mutex> lock(found.mutex);
  if (found.tickets == nullptr) {
    const BesideCapture relaxed;
    void* memory = nullptr;
    check(cudaGetSymbolAddress(&memory, ticket_memory), "cudaGetSymbolAddress");
    found.tickets = static_cast<unsigned*>(memory);
  }
  const auto next = [&](int most) -> unsigned* {
    return found.taken < most ? found.tickets + kTicket * found.taken++ : nullptr;
  };
  if (status != cudaStreamCaptureStatusNone) return next(kTickets - kTicketsOfStreams);
  unsigned long long id = 0;
  check(cudaStreamGetId(of, &id), "cudaStreamGetId");
  const auto [at, is_new] = found.by_stream.try_emplace(id, nullptr);
  if (is_new) at->second = next(kTickets);
  return at->second;
}

void zero(void* memory, int64_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

void prepare(const void* kernel, Schedule schedule, int device) {
  Device& found = device_at(device);
  const std::lock_guard<std::mutex> lock(found.mutex);
  if (found.prepared.contains(kernel)) return;
  const BesideCapture relaxed;
  const auto shared = static_cast<int>(found.limits.shared_per_block - kStaticShared);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
  if (schedule == Schedule::cluster && found.limits.active_clusters[kClusterSizes - 1] > 0) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  }
  found.prepared.insert(kernel);
}

}  // namespace fdkernels::cuda
