// The instructions that C++ has no words for: all inline assembly of the kernels.
#pragma once

#include <cstdint>

namespace fdkernels::cuda {

// A whole vector in one store, aligned to its size; the compiler splits an assignment of one, though not always.
__device__ inline void store_vector(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ inline void store_vector(void* to, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

// Barriers of some of a block's threads, whole warps, told apart by number; 0 is __syncthreads'. A barrier is complete
// when `threads` of them have come, those that wait (sync) and those that go on (arrive). What a thread wrote before it
// came is visible to those that waited.
__device__ inline void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ inline void barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Global memory on its way to L2: address and size are multiples of 16 bytes. From compute capability 9.0 on.
__device__ inline void prefetch_to_cache(uintptr_t from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

}  // namespace fdkernels::cuda
