// Stand-in for CUDA's header: the part of its language and runtime that the library uses, on the software device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>

#include "software_device.h"

// ---- the language

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Every access of a shared variable asks __tls_get_addr for it, which knows the block (instrumentation.cpp). This TLS
// model asks for each variable by itself.
#define __shared__ thread_local __attribute__((tls_model("global-dynamic")))

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline constexpr ::software::Index<::software::thread_index> threadIdx{};
inline constexpr ::software::Index<::software::block_index> blockIdx{};
inline constexpr ::software::Index<::software::block_threads> blockDim{};
inline constexpr ::software::Index<::software::grid_blocks> gridDim{};
constexpr int warpSize = 32;

// These shuffles take no width, unlike CUDA's: it would have to be checked.
using SoftwareSite = ::software::Site;

inline void __syncthreads(SoftwareSite site = SoftwareSite::current()) {
  ::software::sync_block(0, ::software::Vote::none, site);
}
inline int __syncthreads_or(int value, SoftwareSite site = SoftwareSite::current()) {
  return ::software::sync_block(value != 0, ::software::Vote::count, site) > 0;
}
inline int __syncthreads_and(int value, SoftwareSite site = SoftwareSite::current()) {
  return ::software::sync_block(value != 0, ::software::Vote::all, site);
}
inline int __syncthreads_count(int value, SoftwareSite site = SoftwareSite::current()) {
  return ::software::sync_block(value != 0, ::software::Vote::count, site);
}
inline void __syncwarp(unsigned mask = ~0u, SoftwareSite site = SoftwareSite::current()) {
  ::software::warp_collective(mask, 0, 0, ::software::Collective::sync, site);
}

template <class T>
T software_shuffle(unsigned mask, T value, unsigned source, SoftwareSite site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = ::software::warp_collective(mask, bits, source % 32, ::software::Collective::shuffle, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, SoftwareSite site = SoftwareSite::current()) {
  return software_shuffle(mask, value, static_cast<unsigned>(source), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, SoftwareSite site = SoftwareSite::current()) {
  return software_shuffle(mask, value, ::software::thread_index() % 32 ^ static_cast<unsigned>(lanes), site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, SoftwareSite site = SoftwareSite::current()) {
  const unsigned lane = ::software::thread_index() % 32;
  return software_shuffle(mask, value, lane + by < 32 ? lane + by : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, SoftwareSite site = SoftwareSite::current()) {
  const unsigned lane = ::software::thread_index() % 32;
  return software_shuffle(mask, value, lane >= by ? lane - by : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, int value, SoftwareSite site = SoftwareSite::current()) {
  return static_cast<unsigned>(::software::warp_collective(mask, value != 0, 0, ::software::Collective::vote, site));
}
inline int __any_sync(unsigned mask, int value, SoftwareSite site = SoftwareSite::current()) {
  return __ballot_sync(mask, value, site) != 0;
}
inline int __all_sync(unsigned mask, int value, SoftwareSite site = SoftwareSite::current()) {
  return __ballot_sync(mask, value, site) == mask;
}

template <class T>
T software_load(const T* from, ::software::Access how) {
  T value;
  ::software::load(&value, from, sizeof(T), how);
  return value;
}

inline float __fmul_rn(float a, float b) {
  return a * b;
}

inline float __fadd_rn(float a, float b) {
  return a + b;
}

inline float rsqrtf(float v) {
  return 1 / std::sqrt(v);
}

// A kernel that calls this promises that nothing writes there while it runs.
template <class T>
T __ldg(const T* from) {
  return software_load(from, ::software::Access::constant_read);
}
template <class T>
T __ldcg(const T* from) {
  return software_load(from, ::software::Access::read);
}
template <class T>
T __ldcs(const T* from) {
  return software_load(from, ::software::Access::read);
}

inline void __threadfence() {
  ::software::fence();
}
inline void __nanosleep(unsigned, SoftwareSite site = SoftwareSite::current()) {
  ::software::sleep(site);
}

// ---- the runtime

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorInvalidDevice,
  cudaErrorCooperativeLaunchTooLarge,
  cudaErrorStreamCaptureUnsupported,
  cudaErrorLaunchFailure,  // a fault of the device; its text says what and where
};

using cudaStream_t = struct SoftwareStream*;
using cudaEvent_t = struct SoftwareEvent*;

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrL2CacheSize,
  cudaDevAttrMemoryClockRate,
  cudaDevAttrGlobalMemoryBusWidth,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 1, cudaLaunchAttributeClusterDimension };

struct cudaFuncAttributes {
  int ptxVersion, binaryVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamCreate(cudaStream_t*);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*);
cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long*);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t);
cudaError_t cudaEventCreate(cudaEvent_t*);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaMalloc(void**, size_t bytes);
cudaError_t cudaFree(void*);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*);
cudaError_t cudaMemsetAsync(void*, int value, size_t bytes, cudaStream_t);

cudaError_t software_function_attributes(cudaFuncAttributes*, const void* kernel);
cudaError_t software_set_function_attribute(const void* kernel, cudaFuncAttribute, int value);
cudaError_t software_active_clusters(int*, const void* kernel, const cudaLaunchConfig_t*);
cudaError_t software_symbol_address(void** to, const void* symbol, size_t bytes);
// Runs call(kernel, arguments) in every thread, each with its own copy of the arguments.
cudaError_t software_launch(const cudaLaunchConfig_t*, const void* kernel,
                            void (*call)(const void* kernel, void* arguments), const void* arguments, size_t bytes);

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, Kernel* kernel) {
  return software_function_attributes(to, reinterpret_cast<const void*>(kernel));
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute name, int value) {
  return software_set_function_attribute(reinterpret_cast<const void*>(kernel), name, value);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* to, Kernel* kernel, const cudaLaunchConfig_t* config) {
  return software_active_clusters(to, reinterpret_cast<const void*>(kernel), config);
}
template <class Symbol>
cudaError_t cudaGetSymbolAddress(void** to, const Symbol& symbol) {
  return software_symbol_address(to, &symbol, sizeof(symbol));
}
template <class... Parameters>
void software_call(const void* kernel, void* arguments) {
  std::apply(reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(kernel)),
             *static_cast<std::tuple<std::decay_t<Parameters>...>*>(arguments));
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> held(arguments...);
  return software_launch(config, reinterpret_cast<const void*>(kernel), &software_call<Parameters...>, &held,
                         sizeof(held));
}
