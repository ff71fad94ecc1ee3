// Macros for functions that host and device compilers share.
#pragma once

#ifdef __CUDACC__
#define FDK_HOST_DEVICE __host__ __device__
#define FDK_UNROLL _Pragma("unroll")
#else
#define FDK_HOST_DEVICE
#define FDK_UNROLL
#endif

// A device function that a kernel holds once and calls. Code that each block runs only a few times waits longer for its
// instructions than for arithmetic, so inlined copies cost more than calls.
#ifdef __CUDA_ARCH__
#define FDK_CALLED __noinline__ inline
#else
#define FDK_CALLED inline
#endif
