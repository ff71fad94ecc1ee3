// CUDA's runtime on the software device: limits, functions, streams, launches.
#include "runtime.h"

#include <cstring>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace software {

Runtime& runtime() {
  static Runtime one;
  return one;
}

Holding::~Holding() {
  for (const uintptr_t begin : regions) executor().memory.release(begin);
  for (AtenTensorHandle tensor : tensors) aoti_torch_delete_tensor_object(tensor);
}

cudaError_t refused_in_capture() {
  Runtime& r = runtime();
  if (r.mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  bool capturing = false;
  for (SoftwareStream* stream : r.all()) {
    if (stream->capture != nullptr) capturing = stream->capture_failed = true;
  }
  return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t reported(cudaError_t status) {
  if (status != cudaSuccess) runtime().last = status;
  return status;
}

namespace {

Function& function_of(const void* kernel) {
  Runtime& r = runtime();
  const auto [at, is_new] = r.functions.try_emplace({r.device, kernel});
  Function& function = at->second;
  if (is_new) {
    const auto named = r.names.find(kernel);
    if (named == r.names.end()) throw std::logic_error("a kernel that has no name (device.py)");
    std::tie(function.name, function.full_name) = named->second;
    function.static_shared = executor().static_shared(function.full_name);
  }
  return function;
}

// A kernel is loaded when it is first used.
cudaError_t load(Function& function) {
  if (function.loaded) return cudaSuccess;
  const cudaError_t refused = refused_in_capture();
  function.loaded = refused == cudaSuccess;
  return refused;
}

int blocks_a_multiprocessor(const Description& d, const Function& f, unsigned threads, size_t dynamic) {
  const size_t shared = dynamic + f.static_shared + 1024;
  const int by_shared = d.shared_per_multiprocessor / static_cast<int>(shared);
  const int by_registers = d.registers_per_multiprocessor / (d.registers_a_thread * static_cast<int>(threads));
  return std::max(0, std::min({by_shared, by_registers, d.threads_per_multiprocessor / static_cast<int>(threads), 32}));
}

}  // namespace

}  // namespace software

using namespace software;

// ---- the runtime's functions

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorLaunchFailure:
      return runtime().fault.c_str();
  }
  return "unknown error";
}

cudaError_t cudaGetLastError() {
  return std::exchange(runtime().last, cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = runtime().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= static_cast<int>(runtime().devices.size())) return cudaErrorInvalidDevice;
  runtime().device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device) {
  if (device < 0 || device >= static_cast<int>(runtime().devices.size())) return cudaErrorInvalidDevice;
  const Description& d = runtime().devices[static_cast<size_t>(device)];
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = d.capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = d.capability % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = d.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = d.shared_per_block;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = d.shared_per_multiprocessor;
      break;
    case cudaDevAttrL2CacheSize:
      *value = d.cache;
      break;
    case cudaDevAttrMemoryClockRate:
      *value = d.memory_clock;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = d.bus;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** to, size_t bytes) {
  auto memory = std::make_unique_for_overwrite<char[]>(bytes);
  *to = memory.get();
  executor().memory.add(reinterpret_cast<uintptr_t>(*to), bytes, 4, false, "memory of cudaMalloc");
  runtime().allocated[*to] = std::move(memory);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  executor().memory.release(reinterpret_cast<uintptr_t>(memory));
  return runtime().allocated.erase(memory) == 1 ? cudaSuccess : reported(cudaErrorInvalidValue);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  Runtime& r = runtime();
  r.streams.push_back(std::make_unique<SoftwareStream>());
  r.streams.back()->id = r.ids++;
  *stream = r.streams.back().get();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool capturing = runtime().stream(stream).capture != nullptr;
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = runtime().stream(stream).id;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, runtime().mode);
  return cudaSuccess;
}

cudaError_t software_function_attributes(cudaFuncAttributes* to, const void* kernel) {
  if (const cudaError_t status = load(function_of(kernel)); status != cudaSuccess) return reported(status);
  to->ptxVersion = to->binaryVersion = software_architecture;
  return cudaSuccess;
}

cudaError_t software_set_function_attribute(const void* kernel, cudaFuncAttribute name, int value) {
  cudaFuncAttributes attributes;
  if (const cudaError_t status = software_function_attributes(&attributes, kernel); status != cudaSuccess) {
    return status;
  }
  const Description& d = runtime().description();
  Function& function = function_of(kernel);
  if (name == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (value != 0 && d.capability < 90) return reported(cudaErrorInvalidValue);
    function.large_clusters = value != 0;
  } else {
    if (value + static_cast<int>(function.static_shared) > d.shared_per_block) {
      return reported(cudaErrorInvalidValue);
    }
    function.dynamic_shared = value;
  }
  return cudaSuccess;
}

cudaError_t software_active_clusters(int* count, const void* kernel, const cudaLaunchConfig_t* config) {
  const Description& d = runtime().description();
  Function& function = function_of(kernel);
  const int size = static_cast<int>(config->attrs[0].val.clusterDim.x);
  if (d.capability < 90 || size > d.largest_cluster || (size > 8 && !function.large_clusters)) {
    return reported(cudaErrorInvalidValue);
  }
  const int blocks = blocks_a_multiprocessor(d, function, config->blockDim.x, config->dynamicSmemBytes);
  *count = d.multiprocessors * blocks / size;
  return cudaSuccess;
}

cudaError_t software_symbol_address(void** to, const void* symbol, size_t bytes) {
  if (const cudaError_t refused = refused_in_capture(); refused != cudaSuccess) return reported(refused);
  *to = const_cast<void*>(symbol);
  executor().memory.add(reinterpret_cast<uintptr_t>(symbol), bytes, 4, true, "the module's memory");
  return cudaSuccess;
}

namespace {

cudaError_t launched(const cudaLaunchConfig_t* config, const void* kernel,
                     void (*call)(const void* kernel, void* arguments), const void* arguments, size_t bytes) {
  Runtime& r = runtime();
  const Description& d = r.description();
  Function& function = function_of(kernel);
  SoftwareStream& stream = r.stream(config->stream);
  if (const cudaError_t status = load(function); status != cudaSuccess) return status;
  auto launch = std::make_shared<Launch>();
  launch->function = &function;
  launch->kernel = kernel, launch->call = call;
  launch->arguments.assign(static_cast<const char*>(arguments), static_cast<const char*>(arguments) + bytes);
  launch->blocks = config->gridDim.x, launch->threads = config->blockDim.x;
  launch->dynamic_shared = config->dynamicSmemBytes;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) launch->cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) launch->cluster = attribute.val.clusterDim.x;
  }
  const int shared = static_cast<int>(launch->dynamic_shared);
  if (launch->blocks == 0 || launch->threads == 0 || launch->threads > 1024 || launch->cluster == 0 ||
      bytes > kArguments || launch->blocks % launch->cluster != 0) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared > function.dynamic_shared || shared + static_cast<int>(function.static_shared) > d.shared_per_block) {
    return cudaErrorInvalidValue;
  }
  if (launch->cluster > 1 && (d.capability < 90 || static_cast<int>(launch->cluster) > d.largest_cluster ||
                              (launch->cluster > 8 && !function.large_clusters))) {
    return cudaErrorInvalidConfiguration;
  }
  const int multiprocessors = d.granted > 0 ? d.granted : d.multiprocessors;
  const int together = blocks_a_multiprocessor(d, function, launch->threads, launch->dynamic_shared);
  const int resident = multiprocessors * together;
  if (resident < static_cast<int>(launch->cluster)) return cudaErrorInvalidConfiguration;
  if (launch->cooperative && static_cast<int>(launch->blocks) > resident) return cudaErrorCooperativeLaunchTooLarge;
  launch->share = 1.0 / together, launch->all = multiprocessors;
  r.launches += function.name + " " + std::to_string(launch->blocks) + " " + std::to_string(launch->threads) + " " +
                std::to_string(shared) + " " + std::to_string(launch->cluster) + " " +
                std::to_string(launch->cooperative) + "\n";
  return submit(stream, {std::move(launch), nullptr, nullptr});
}

}  // namespace

cudaError_t software_launch(const cudaLaunchConfig_t* config, const void* kernel,
                            void (*call)(const void* kernel, void* arguments), const void* arguments, size_t bytes) {
  return reported(launched(config, kernel, call, arguments, bytes));
}

int32_t software_current_stream(int32_t, void** stream) {
  *stream = runtime().current;
  return 0;
}
