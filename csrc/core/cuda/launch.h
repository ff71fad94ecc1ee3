// Launches of kernels, and the check of CUDA runtime calls.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/cuda/device.h"

namespace fdkernels::cuda {

// Throws std::runtime_error if the call that `what` names has failed.
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

// Starts a planned call. Returns false if this context cannot hold all blocks of a grid at once.
template <class Call>
bool start(const char* name, void (*kernel)(Call), const Call& call, const Plan& plan, int device, void* stream) {
  prepare(reinterpret_cast<const void*>(kernel), plan.schedule, device);
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks()));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  if (plan.schedule == Schedule::grid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  } else if (plan.team > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.team), 1, 1};
    config.numAttrs = 1;
  }
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, call);
  const bool refused = status == cudaErrorCooperativeLaunchTooLarge;
  if (refused) cudaGetLastError();  // or the next call would report it again
  check(refused ? cudaSuccess : status, name);
  return !refused;
}

}  // namespace fdkernels::cuda
