// Kernels with one fault each that a sanitizer sees and the device itself does not, and the same kernels without it.
#include <climits>
#include <cstring>

#include "cuda_runtime.h"

namespace {

constexpr unsigned kThreads = 64;

__device__ unsigned memory[kThreads];

// Not inlined: if the compiler knew the array's size, another check would report the fault.
__attribute__((noinline)) unsigned read(const unsigned* values, unsigned index) {
  return values[index];
}

// The red zone has to be there after a barrier, at which the stack is left and entered again.
template <bool kBroken>
__global__ void beyond_local_array_kernel() {
  unsigned values[4] = {threadIdx.x, 1, 2, 3};
  __syncthreads();
  memory[threadIdx.x] = read(values, kBroken && threadIdx.x == 9 ? 4 : threadIdx.x % 4);
}

template <bool kBroken>
__global__ void out_of_scope_kernel() {
  const unsigned* left = nullptr;
  unsigned outer[2] = {threadIdx.x, 1};
  {
    unsigned inner[2] = {threadIdx.x, 2};
    left = kBroken ? inner : outer;
    memory[threadIdx.x] = read(inner, 1);
  }
  __syncthreads();
  memory[threadIdx.x] = read(left, 1) + read(outer, 0);
}

template <bool kBroken>
__global__ void shift_kernel() {
  memory[threadIdx.x] = 1u << (kBroken ? threadIdx.x : threadIdx.x % 32);
}

template <bool kBroken>
__global__ void signed_overflow_kernel() {
  const int from = INT_MAX - static_cast<int>(kThreads) + (kBroken ? 2 : 1);
  memory[threadIdx.x] = static_cast<unsigned>(from + static_cast<int>(threadIdx.x));
}

template <bool kBroken>
__global__ void cast_kernel() {
  const float value = static_cast<float>(threadIdx.x) * (kBroken ? 1e9f : 1.0f);
  memory[threadIdx.x] = static_cast<unsigned>(static_cast<int>(value));
}

template <bool kBroken>
__global__ void index_kernel() {
  const unsigned values[4] = {threadIdx.x, 1, 2, 3};
  memory[threadIdx.x] = values[threadIdx.x % (kBroken ? 5 : 4)];
}

template <class Kernel>
cudaError_t start(Kernel* kernel) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(kThreads);
  return cudaLaunchKernelEx(&config, kernel);
}

cudaError_t planted(const char* name, bool broken) {
#define PLANTED(kernel) \
  if (std::strcmp(name, #kernel) == 0) return start(broken ? kernel##_kernel<true> : kernel##_kernel<false>)
  PLANTED(beyond_local_array);
  PLANTED(out_of_scope);
  PLANTED(shift);
  PLANTED(signed_overflow);
  PLANTED(cast);
  PLANTED(index);
#undef PLANTED
  return cudaErrorInvalidValue;
}

}  // namespace

// What the device finds wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* software_planted(const char* name, bool broken) {
  void* address = nullptr;
  cudaGetSymbolAddress(&address, memory);
  const cudaError_t status = planted(name, broken);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
