// A part of planted.cu: kernels whose threads do not meet as they should.
#pragma once

template <bool kBroken>
__global__ void divergent_barriers_kernel(unsigned, unsigned*) {
  if (kBroken && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

template <bool kBroken>
__global__ void cluster_barrier_alone_kernel(unsigned, unsigned*) {
  const auto cluster = cooperative_groups::this_cluster();
  cluster.barrier_arrive();
  if (kBroken && threadIdx.x < 32) {
    cluster.barrier_wait();
  } else {
    cluster.barrier_wait();
  }
}

template <bool kBroken>
__global__ void left_before_barrier_kernel(unsigned, unsigned*) {
  if (kBroken && threadIdx.x == 40) return;
  __syncthreads();
}

template <bool kBroken>
__global__ void divergent_warp_kernel(unsigned, unsigned*) {
  const bool first = kBroken ? threadIdx.x % 32 < 16 : threadIdx.x < 32;
  if (first) {
    own_part()[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 1);
  } else {
    own_part()[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 2);
  }
}

template <bool kBroken>
__global__ void shuffle_from_outside_kernel(unsigned, unsigned*) {
  if (threadIdx.x < 16) own_part()[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, kBroken ? 20 : 3);
}

template <bool kBroken>
__global__ void halves_of_warps_kernel(unsigned, unsigned*) {
  if (kBroken ? threadIdx.x % 32 < 16 : threadIdx.x < 32) fdkernels::cuda::barrier_sync(1, 32);
}

template <bool kBroken>
__global__ void arrival_in_vain_kernel(unsigned, unsigned*) {
  if (threadIdx.x < 32) {
    fdkernels::cuda::barrier_arrive(2, kThreads);
  } else if (!kBroken) {
    fdkernels::cuda::barrier_sync(2, kThreads);
  }
}

template <bool kBroken>
__global__ void livelock_kernel(unsigned, unsigned*) {
  Flag flag(memory[0]);
  do {
    flag.fetch_add(1, ::cuda::memory_order_relaxed);
  } while (kBroken);
}

// Every block waits for all.
template <bool kBroken>
__global__ void waiting_grid_kernel(unsigned, unsigned*) {
  if (threadIdx.x != 0) return;
  Flag arrived(memory[0]);
  arrived.fetch_add(1, ::cuda::memory_order_release);
  while (arrived.load(::cuda::memory_order_acquire) < gridDim.x) __nanosleep(32);
}

template <bool kBroken>
__global__ void deadlock_kernel(unsigned, unsigned*) {
  Flag flag(memory[0]);
  if (threadIdx.x == 0 && blockIdx.x == 1) flag.fetch_add(1, ::cuda::memory_order_release);
  if (threadIdx.x == 0) {
    while (flag.load(::cuda::memory_order_acquire) < (kBroken ? 2 : 1)) __nanosleep(32);
  }
  __syncthreads();
}

// Checks what warps and blocks exchange, and what atomics return. Broken: one expected value is wrong.
template <bool kBroken>
__global__ void collectives_kernel(unsigned, unsigned*) {
  const unsigned lane = threadIdx.x % 32;
  Flag count(memory[128 + blockIdx.x]);
  unsigned wrong = 0;
  const auto expect = [&](unsigned found, unsigned wanted) { wrong += found != wanted; };
  expect(__shfl_sync(~0u, lane, 7), 7);
  expect(__shfl_xor_sync(~0u, lane, 5), lane ^ 5);
  expect(__shfl_up_sync(~0u, lane, 3), lane < 3 ? lane : lane - 3);
  expect(__shfl_down_sync(~0u, lane, 3), lane > 28 ? lane : lane + 3);
  expect(__ballot_sync(~0u, lane % 2), 0xaaaaaaaa);
  expect(__any_sync(~0u, lane == 9), 1);
  expect(__any_sync(~0u, 0), 0);
  expect(__all_sync(~0u, lane < 32), 1);
  expect(__all_sync(~0u, lane < 31), 0);
  expect(__syncthreads_count(threadIdx.x < 40), 40);
  expect(__syncthreads_or(threadIdx.x == 40), 1);
  expect(__syncthreads_and(threadIdx.x != 40), 0);
  if (threadIdx.x == 0) {
    expect(count.exchange(6, ::cuda::memory_order_relaxed), 0);
    expect(count.fetch_or(1, ::cuda::memory_order_relaxed), 6);
    expect(count.fetch_add(3, ::cuda::memory_order_relaxed), 7);
    expect(count.load(::cuda::memory_order_relaxed), kBroken ? 11 : 10);
  }
  own_part()[threadIdx.x] = wrong;
}
