// What the same source needs to be compiled for host and device.
#pragma once

#ifdef __CUDACC__
#define FDK_HOST_DEVICE __host__ __device__
#else
#define FDK_HOST_DEVICE
#endif

// Once in a kernel, and called: what each block runs a few times waits longer for code than for arithmetic.
#ifdef __CUDA_ARCH__
#define FDK_CALLED __noinline__ inline
#else
#define FDK_CALLED inline
#endif
