// Calls of CUDA's runtime that must succeed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

namespace fdkernels::cuda {

// Throws std::runtime_error where the call that `what` names has failed.
void check(cudaError_t status, const std::string& what);

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace fdkernels::cuda
