// Faults planted on purpose, one for each tool of compute-sanitizer: a tool that misses its fault does not work
// on this machine.
#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;  // two warps

__global__ void out_of_bounds(int* memory, int*) {
  memory[kThreads + threadIdx.x] = 1;
}

__global__ void race(int*, int* result) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  result[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // the other warp's values, without a barrier
}

__global__ void uninitialized(int* memory, int* result) {
  result[threadIdx.x] = memory[threadIdx.x] + 1;
}

__global__ void divergent_barrier(int*, int* result) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
    result[threadIdx.x] = 1;
  } else {
    result[threadIdx.x] = 2;
    __syncthreads();
  }
}

struct Fault {
  const char* tool;
  void (*kernel)(int*, int*);
};

constexpr Fault kFaults[] = {
    {"memcheck", out_of_bounds},
    {"racecheck", race},
    {"initcheck", uninitialized},
    {"synccheck", divergent_barrier},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Fault& fault : kFaults) {
    if (argc != 2 || std::strcmp(fault.tool, argv[1]) != 0) continue;
    int *memory = nullptr, *result = nullptr;
    cudaMalloc(&memory, kThreads * sizeof(int));
    cudaMalloc(&result, kThreads * sizeof(int));
    fault.kernel<<<1, kThreads>>>(memory, result);
    const cudaError_t error = cudaDeviceSynchronize();
    std::printf("planted for %s: %s\n", argv[1], cudaGetErrorString(error));
    return 0;
  }
  std::fprintf(stderr, "usage: planted memcheck|racecheck|initcheck|synccheck\n");
  return 2;
}
