// Kernels with one fault each, and the same kernels without it.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstring>
#include <cuda/atomic>
#include <string_view>

#include "core/cuda/ptx.cuh"

extern "C" void software_capture(cudaStream_t);
extern "C" void software_hold_back(bool);
extern "C" void* software_end_capture(cudaStream_t);
extern "C" void software_drop(void*);

namespace fdkernels::cuda {

extern __shared__ uint4 dynamic_shared[];

}  // namespace fdkernels::cuda

namespace {

using fdkernels::cuda::dynamic_shared;
using Flag = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

constexpr unsigned kThreads = 64, kBlocks = 2;

__device__ unsigned memory[256];
__device__ unsigned ticket_memory[1];

// Every block's own part of the memory.
unsigned* own_part() {
  return memory + blockIdx.x * 64;
}

float* dynamic_floats() {
  return reinterpret_cast<float*>(dynamic_shared);
}

template <bool kBroken>
__global__ void dynamic_out_of_bounds_kernel(unsigned floats, unsigned*) {
  dynamic_floats()[threadIdx.x + (kBroken ? floats - kThreads + 1 : 0)] = 1;
}

template <bool kBroken>
__global__ void static_out_of_bounds_kernel(unsigned, unsigned*) {
  __shared__ float values[kThreads];
  float* to = values + threadIdx.x + (kBroken ? 1 : 0);
  *to = 1;
}

template <bool kBroken>
__global__ void dynamic_read_out_of_bounds_kernel(unsigned floats, unsigned*) {
  dynamic_floats()[threadIdx.x] = 1;
  const float read = dynamic_floats()[threadIdx.x == 9 && kBroken ? floats : threadIdx.x];
  own_part()[threadIdx.x] = static_cast<unsigned>(read);
}

template <bool kBroken>
__global__ void static_read_out_of_bounds_kernel(unsigned, unsigned*) {
  __shared__ unsigned values[kThreads], others[kThreads];
  values[threadIdx.x] = others[threadIdx.x] = 1;
  __syncthreads();
  const unsigned* from =
      values + (kBroken && threadIdx.x == 9 ? kThreads : threadIdx.x);  // before or behind the others
  own_part()[threadIdx.x] = *from + others[threadIdx.x];
}

template <bool kBroken>
__global__ void uninitialized_shared_kernel(unsigned, unsigned*) {
  __shared__ unsigned values[kThreads];
  if (!kBroken || threadIdx.x != 7) values[threadIdx.x] = 1;
  own_part()[threadIdx.x] = values[threadIdx.x];
}

template <bool kBroken>
__global__ void global_out_of_bounds_kernel(unsigned, unsigned*) {
  memory[kBroken && threadIdx.x == 5 ? 256 : blockIdx.x * 64 + threadIdx.x] = 1;
}

template <bool kBroken>
__global__ void global_read_out_of_bounds_kernel(unsigned, unsigned*) {
  own_part()[threadIdx.x] = 1;
  if (threadIdx.x == 5) own_part()[5] = __ldcg(memory + (kBroken ? 256 : blockIdx.x * 64 + 5));
}

template <bool kBroken>
__global__ void uninitialized_global_kernel(unsigned, unsigned* scratch) {
  if (!kBroken || threadIdx.x != 7) scratch[blockIdx.x * kThreads + threadIdx.x] = 1;
  own_part()[threadIdx.x] = scratch[blockIdx.x * kThreads + threadIdx.x];
}

template <bool kBroken>
__global__ void misaligned_kernel(unsigned, unsigned*) {
  if (threadIdx.x == 0) fdkernels::cuda::store_vector(own_part() + (kBroken ? 2 : 4), 0, 0, 0, 0);
}

template <bool kBroken>
__global__ void shared_race_kernel(unsigned, unsigned*) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  if (!kBroken) __syncthreads();
  own_part()[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

template <bool kBroken>
__global__ void warp_race_kernel(unsigned, unsigned*) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  if (!kBroken) __syncwarp();
  own_part()[threadIdx.x] = values[threadIdx.x ^ 1];
}

template <bool kBroken>
__global__ void global_race_kernel(unsigned, unsigned*) {
  if (threadIdx.x == 0) memory[kBroken ? 0 : blockIdx.x] = 1;
}

// Block 1 publishes, block 0 waits for it.
template <bool kBroken>
__global__ void relaxed_flag_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  Flag flag(memory[0]);
  if (blockIdx.x == 1) {
    memory[1] = 5;
    flag.fetch_add(1, ::cuda::memory_order_release);
    return;
  }
  while (flag.load(kBroken ? ::cuda::memory_order_relaxed : ::cuda::memory_order_acquire) == 0) __nanosleep(32);
  memory[2] = memory[1];
}

template <bool kBroken>
__global__ void fenced_flag_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  Flag flag(memory[0]);
  if (blockIdx.x == 1) {
    memory[1] = 5;
    if (!kBroken) __threadfence();
    flag.fetch_add(1, ::cuda::memory_order_relaxed);
    return;
  }
  while (flag.load(::cuda::memory_order_relaxed) == 0) __nanosleep(32);
  __threadfence();
  memory[2] = memory[1];
}

// A store ends what an earlier write of the same variable has released.
template <bool kBroken>
__global__ void relaxed_store_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  Flag flag(memory[0]);
  if (blockIdx.x == 1) {
    memory[1] = 5;
    flag.fetch_add(1, ::cuda::memory_order_release);
    flag.store(2, kBroken ? ::cuda::memory_order_relaxed : ::cuda::memory_order_release);
    return;
  }
  while (flag.load(::cuda::memory_order_relaxed) != 2) __nanosleep(32);
  flag.load(::cuda::memory_order_acquire);
  memory[2] = memory[1];
}

template <bool kBroken>
__global__ void plain_beside_atomic_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  Flag flag(memory[0]);
  if (blockIdx.x == 0) {
    flag.load(::cuda::memory_order_acquire);
  } else {
    flag.fetch_add(1, ::cuda::memory_order_acq_rel);
    if (kBroken) memory[0] = 7;
  }
}

template <bool kBroken>
__global__ void read_only_load_kernel(unsigned, unsigned*) {
  own_part()[threadIdx.x] = 1;
  own_part()[threadIdx.x] = kBroken ? __ldg(own_part() + threadIdx.x) : own_part()[threadIdx.x];
}

template <bool kBroken>
__global__ void block_scope_kernel(unsigned, unsigned*) {
  constexpr auto kScope = kBroken ? ::cuda::thread_scope_block : ::cuda::thread_scope_device;
  if (threadIdx.x == 0) {
    ::cuda::atomic_ref<unsigned, kScope>(memory[0]).fetch_add(1, ::cuda::memory_order_acq_rel);
  }
}

template <bool kBroken>
__global__ void prefetch_kernel(unsigned, unsigned*) {
  if (threadIdx.x == 0) {
    fdkernels::cuda::prefetch_to_cache(reinterpret_cast<uintptr_t>(memory), kBroken ? sizeof(memory) + 16 : 32);
  }
}

// Writes to the other block of the cluster.
template <bool kBroken>
__global__ void left_cluster_kernel(unsigned, unsigned*) {
  __shared__ unsigned value;
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    *cluster.map_shared_rank(&value, 1) = 3;
  }
  if (!kBroken) cluster.sync();
}

template <bool kBroken>
__global__ void not_begun_cluster_kernel(unsigned, unsigned*) {
  __shared__ unsigned value;
  const auto cluster = cooperative_groups::this_cluster();
  if (!kBroken) cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    *cluster.map_shared_rank(&value, 1) = 3;
  }
  cluster.sync();
}

// Writes beyond a variable of the other block.
template <bool kBroken>
__global__ void cluster_out_of_bounds_kernel(unsigned, unsigned*) {
  __shared__ unsigned values[kThreads];
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  unsigned* others = cluster.map_shared_rank(values, 1 - cluster.block_rank());
  others[kBroken && threadIdx.x == 3 ? kThreads : threadIdx.x] = 3;
  cluster.sync();
}

template <bool kBroken>
__global__ void ticket_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  const bool last = Flag(ticket_memory[0]).fetch_add(1, ::cuda::memory_order_acq_rel) == gridDim.x - 1;
  if (last && !kBroken) ticket_memory[0] = 0;
}

template <bool kBroken>
__global__ void idle_kernel(unsigned, unsigned*) {}

template <bool kBroken>
__global__ void one_write_kernel(unsigned, unsigned*) {
  if (blockIdx.x == 0 && threadIdx.x == 0) memory[0] = 1;
}

#include "planted_barriers.cuh"

struct Shape {
  unsigned blocks = kBlocks, threads = kThreads, cluster = 1;
  size_t shared = 0;
  bool cooperative = false;
  cudaStream_t stream = nullptr;
};

template <class Kernel>
cudaError_t start(Kernel* kernel, const Shape& shape) {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  attribute.id = shape.cooperative ? cudaLaunchAttributeCooperative : cudaLaunchAttributeClusterDimension;
  attribute.val.cooperative = shape.cooperative;
  attribute.val.clusterDim = {shape.cluster, 1, 1};
  config.stream = shape.stream;
  void* scratch = nullptr;
  cudaMalloc(&scratch, kBlocks * kThreads * sizeof(unsigned));
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<unsigned>(shape.shared / sizeof(float)),
                                                static_cast<unsigned*>(scratch));
  cudaFree(scratch);
  return status;
}

// A call that waits for the device, inside a capture.
cudaError_t sync_in_capture(bool broken) {
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  software_capture(stream);
  const cudaError_t status = broken ? cudaStreamSynchronize(stream) : cudaSuccess;
  software_drop(software_end_capture(stream));
  return status;
}

// Two writes of the same memory: in one stream, or in two.
cudaError_t on_streams(bool with_fill, bool with_event, bool broken) {
  cudaStream_t first, second;
  cudaEvent_t event;
  cudaStreamCreate(&first);
  cudaStreamCreate(&second);
  cudaEventCreate(&event);
  software_hold_back(true);
  if (with_fill) {
    cudaMemsetAsync(memory, 0, sizeof(memory), first);
  } else {
    start(one_write_kernel<false>, Shape{.stream = first});
  }
  cudaEventRecord(event, first);
  if (with_event && !broken) cudaStreamWaitEvent(second, event);
  start(one_write_kernel<false>, Shape{.stream = with_event || broken ? second : first});
  const cudaError_t status = cudaDeviceSynchronize();
  software_hold_back(false);
  return status;
}

cudaError_t planted(const char* name, bool broken) {
#define PLANTED(kernel, ...)           \
  if (std::strcmp(name, #kernel) == 0) \
  return start(broken ? kernel##_kernel<true> : kernel##_kernel<false>, __VA_ARGS__)
  PLANTED(dynamic_out_of_bounds, (Shape{1, kThreads, 1, kThreads * sizeof(float)}));
  PLANTED(static_out_of_bounds, Shape{});
  PLANTED(dynamic_read_out_of_bounds, (Shape{1, kThreads, 1, kThreads * sizeof(float)}));
  PLANTED(static_read_out_of_bounds, Shape{});
  PLANTED(global_read_out_of_bounds, Shape{});
  PLANTED(cluster_out_of_bounds, (Shape{2, kThreads, 2}));
  PLANTED(uninitialized_global, Shape{});
  PLANTED(relaxed_store, Shape{});
  PLANTED(plain_beside_atomic, Shape{});
  PLANTED(shuffle_from_outside, Shape{});
  PLANTED(halves_of_warps, Shape{});
  PLANTED(arrival_in_vain, Shape{});
  PLANTED(livelock, Shape{});
  PLANTED(waiting_grid, (Shape{broken ? 40u : 32u, kThreads, 1, 20 << 10}));
  PLANTED(collectives, Shape{});
  PLANTED(uninitialized_shared, Shape{});
  PLANTED(global_out_of_bounds, Shape{});
  PLANTED(misaligned, Shape{});
  PLANTED(shared_race, Shape{});
  PLANTED(warp_race, Shape{});
  PLANTED(global_race, Shape{});
  PLANTED(read_only_load, Shape{});
  PLANTED(divergent_barriers, Shape{});
  PLANTED(cluster_barrier_alone, Shape{});
  PLANTED(left_before_barrier, Shape{});
  PLANTED(divergent_warp, Shape{});
  PLANTED(block_scope, Shape{});
  PLANTED(prefetch, Shape{});
  PLANTED(ticket, Shape{});
  PLANTED(left_cluster, (Shape{2, kThreads, 2}));
  PLANTED(not_begun_cluster, (Shape{2, kThreads, 2}));
  PLANTED(relaxed_flag, Shape{});
  PLANTED(fenced_flag, Shape{});
  PLANTED(deadlock, (Shape{kBlocks, kThreads, 1, 0, true}));
#undef PLANTED
  const std::string_view limit = name;
  Shape shape;
  if (limit == "too large a cooperative grid") shape = {broken ? 4096u : 4u, kThreads, 1, 0, true};
  if (limit == "too many threads") shape.threads = broken ? 1056 : 512;
  if (limit == "too much shared memory") shape.shared = broken ? 49 << 10 : 1 << 10;
  if (limit == "too large a cluster") shape = {16, kThreads, broken ? 16u : 8u};
  if (limit == "a sync in a capture") return sync_in_capture(broken);
  if (limit == "a fill beside a kernel") return on_streams(true, false, broken);
  if (limit == "streams without an event") return on_streams(false, true, broken);
  return start(idle_kernel<false>, shape);
}

}  // namespace

// What went wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* software_planted(const char* name, bool broken) {
  void* address = nullptr;
  std::memset(memory, 0, sizeof(memory));
  std::memset(ticket_memory, 0, sizeof(ticket_memory));
  cudaGetSymbolAddress(&address, memory);
  cudaGetSymbolAddress(&address, ticket_memory);
  const cudaError_t status = planted(name, broken);
  const bool checks_itself = std::strcmp(name, "collectives") == 0 && status == cudaSuccess;
  if (checks_itself && std::any_of(memory, memory + 128, [](unsigned wrong) { return wrong != 0; })) {
    return "a wrong value";
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
