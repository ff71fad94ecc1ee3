// All inline assembly of the kernels: instructions that have no reliable form in CUDA C++.
#pragma once

#include <cstdint>

namespace fdkernels::cuda {

// Stores a whole vector, aligned to its size, in one instruction. The compiler may split a plain assignment.
__device__ inline void store_vector(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ inline void store_vector(void* to, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

// Named barriers, for some warps of a block; __syncthreads has number 0. A barrier completes when `threads` threads
// have come: those that wait (barrier_sync) and those that go on (barrier_arrive). Threads that waited see what all
// threads wrote before they came.
__device__ inline void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ inline void barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Starts a prefetch of global memory into L2. Address and size must be multiples of 16 bytes. Does nothing below
// compute capability 9.0.
__device__ inline void prefetch_to_cache(uintptr_t from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

}  // namespace fdkernels::cuda
