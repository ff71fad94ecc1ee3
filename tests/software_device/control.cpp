// The calls of the library to libtorch (torch_calls.h), and the functions for tests (device.py).
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "runtime.h"
#include "torch_calls.h"

#undef aoti_torch_get_data_ptr
#undef aoti_torch_get_device_type
#undef aoti_torch_empty_strided
#undef aoti_torch_library_init_impl

using namespace software;

// ---- libtorch

namespace {

// Makes the bytes from a tensor's first element to its last device memory, while the call and its work run.
void hold(AtenTensorHandle tensor, bool is_written, const char* name) {
  const std::shared_ptr<Holding>& call = runtime().call;
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  void* data = nullptr;
  aoti_torch_get_dim(tensor, &dims);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  aoti_torch_get_data_ptr(tensor, &data);
  const size_t size = aoti_torch_dtype_element_size(dtype);
  int64_t last = 0;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 0) return;
    last += (sizes[d] - 1) * strides[d];
  }
  if (call == nullptr || data == nullptr) return;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const size_t bytes = (static_cast<size_t>(last) + 1) * size;
  const auto& had = call->regions;
  if (std::find(had.begin(), had.end(), begin) != had.end() && executor().memory.find(begin, bytes)) return;
  // Not 8 bytes at a time: some tensors of doubles hold integers.
  executor().memory.add(begin, bytes, static_cast<unsigned>(std::min<size_t>(size, 4)), is_written,
                        std::string(name) + " of " + std::to_string(bytes) + " bytes");
  call->regions.push_back(begin);
  AtenTensorHandle kept;
  if (aoti_torch_new_tensor_handle(tensor, &kept) == 0) call->tensors.push_back(kept);
}

}  // namespace

AOTITorchError software_get_data_ptr(AtenTensorHandle tensor, void** data) {
  hold(tensor, true, "a tensor");
  return aoti_torch_get_data_ptr(tensor, data);
}

AOTITorchError software_get_device_type(AtenTensorHandle tensor, int32_t* type) {
  void* data = nullptr;
  aoti_torch_get_data_ptr(tensor, &data);
  const auto& host = runtime().of_host;
  const bool of_host = data != nullptr && std::find(host.begin(), host.end(), data) != host.end();
  *type = of_host ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda();
  return 0;
}

AOTITorchError software_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = runtime().device;
  return 0;
}

AOTITorchError software_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                      int32_t, int32_t, AtenTensorHandle* made) {
  const AOTITorchError error =
      aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, made);
  if (error != 0 || runtime().call == nullptr) return error;
  // Fill it with NaN, so that nothing of an earlier call is left there.
  void* data = nullptr;
  int64_t bytes = 0;
  aoti_torch_get_data_ptr(*made, &data);
  aoti_torch_get_storage_size(*made, &bytes);
  if (bytes > 0) std::memset(data, 0xff, static_cast<size_t>(bytes));
  hold(*made, false, "new memory");
  return 0;
}

AOTITorchError software_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  runtime().call = std::make_shared<Holding>();
  *guard = reinterpret_cast<DeviceGuardHandle>(&runtime());
  return 0;
}

AOTITorchError software_delete_device_guard(DeviceGuardHandle) {
  runtime().call = nullptr;
  return 0;
}

AOTITorchError software_library_init_impl(const char*, const char* key, const char* file, uint32_t line,
                                          TorchLibraryHandle* library) {
  const char* to = std::strcmp(key, "CUDA") == 0 ? "CPU" : key;
  return aoti_torch_library_init_impl(software_namespace, to, file, line, library);
}

// ---- tests

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The fields of Description in their order; returns the device's index.
EXPORTED int software_add_device(const int* fields) {
  Description d;
  for (int* to : {&d.capability, &d.multiprocessors, &d.shared_per_block, &d.shared_per_multiprocessor, &d.cache,
                  &d.largest_cluster, &d.granted}) {
    *to = *fields++;
  }
  runtime().devices.push_back(d);
  return static_cast<int>(runtime().devices.size()) - 1;
}

EXPORTED void software_use_device(int index) {
  runtime().device = index;
}

EXPORTED void software_schedule(int schedule, uint64_t seed) {
  executor().set(static_cast<Schedule>(schedule), seed);
}

// The tensors that are on the host: a launcher reads them.
EXPORTED void software_of_host(const void* first, const void* second) {
  runtime().of_host = {first, second};
}

EXPORTED void software_hold_back(bool so) {
  runtime().holds_back = so;
}

EXPORTED SoftwareStream* software_stream() {
  SoftwareStream* made = nullptr;
  cudaStreamCreate(&made);
  return made;
}

EXPORTED void software_use_stream(SoftwareStream* stream) {
  runtime().current = stream;
}

EXPORTED const char* software_synchronize() {
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

EXPORTED void software_capture(SoftwareStream* stream) {
  runtime().stream(stream).capture = std::make_unique<Graph>();
  runtime().stream(stream).capture_failed = false;
}

// Null if the capture was broken.
EXPORTED Graph* software_end_capture(SoftwareStream* stream) {
  SoftwareStream& of = runtime().stream(stream);
  std::unique_ptr<Graph> graph = std::move(of.capture);
  return of.capture_failed ? nullptr : graph.release();
}

EXPORTED const char* software_replay(const Graph* graph, SoftwareStream* stream) {
  for (const Work& work : graph->work) {
    const cudaError_t status = submit(runtime().stream(stream), work);
    if (status != cudaSuccess) return cudaGetErrorString(status);
  }
  return nullptr;
}

EXPORTED void software_drop(Graph* graph) {
  delete graph;
}

EXPORTED void software_name(const void* kernel, const char* name, const char* full_name) {
  runtime().names[kernel] = {name, full_name};
}

EXPORTED void software_name_shared(uint64_t offset, uint64_t bytes, const char* name) {
  executor().name_shared(offset, bytes, name);
}

EXPORTED void software_place_shared() {
  executor().place_shared();
}

EXPORTED void software_most_steps(uint64_t steps) {
  executor().most_steps = steps;
}

// The last error that nothing has asked for, or null.
EXPORTED const char* software_last_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

EXPORTED void software_name_tickets(uintptr_t begin, uint64_t bytes) {
  runtime().tickets[begin] = bytes;
}

// Launches since the last call of this, a line each: name, blocks, threads, dynamic shared memory, cluster, whether
// cooperative.
EXPORTED const char* software_launches() {
  static std::string text;
  text = std::move(runtime().launches);
  runtime().launches.clear();
  return text.c_str();
}

// Traffic of kernels since the last call of this, a line per region: begin, size, bytes read, bytes written. Regions of
// calls that have ended are included.
EXPORTED const char* software_traffic() {
  static std::string text;
  text = executor().memory.take_traffic();
  return text.c_str();
}

// Address sanitizer calls this after its report (sanitized.py).
EXPORTED void software_say_where() {
  const Thread* thread = executor().current;
  if (thread == nullptr) return;
  std::fprintf(stderr, "%s, %s\n", callers().c_str(), executor().name(thread->clock.thread).c_str());
  std::fflush(stderr);
}
