// What the threads of one block do together: sums in a fixed order, reading a real of any type, tickets.
#pragma once

#include <cuda/atomic>

#include "call.h"
#include "fdkernels/numbers.h"

namespace fdkernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxSums = 7;

struct Scratch {
  double warps[kMaxThreads / kWarp][kMaxSums];
  double totals[kMaxSums];
};

__device__ inline int lane() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

__device__ inline int warp() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

struct Add {
  static constexpr double kNeutral = 0;
  __device__ static double of(double a, double b) {
    return a + b;
  }
};

struct Max {
  static constexpr double kNeutral = -INFINITY;
  __device__ static double of(double a, double b) {
    return ::fmax(a, b);
  }
};

// Over a warp, the same in every lane.
template <class Op, int N>
__device__ inline void reduce_warp(double (&values)[N]) {
  // Not unrolled: inlined many times, and run where fetching code would take longer than the loop.
#pragma unroll 1
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = Op::of(values[n], __shfl_xor_sync(kAllLanes, values[n], offset));
  }
}

// Every warp's values over the block, the same in every thread. The order depends on the number of threads alone.
template <class Op, int N>
__device__ inline void share_in_block(double (&values)[N], Scratch& scratch) {
  static_assert(N <= kMaxSums);
  if (lane() == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) scratch.warps[warp()][n] = values[n];
  }
  __syncthreads();
  if (warp() == 0) {
    const bool there = lane() < static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = there ? scratch.warps[lane()][n] : Op::kNeutral;
    reduce_warp<Op>(values);
    if (lane() == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) scratch.totals[n] = values[n];
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = scratch.totals[n];
}

template <class Op, int N>
__device__ inline void reduce_block(double (&values)[N], Scratch& scratch) {
  reduce_warp<Op>(values);
  share_in_block<Op>(values, scratch);
}

__device__ FDK_CALLED double read_real(const void* data, RealType type, int64_t i) {
  switch (type) {
    case RealType::f32:
      return static_cast<const float*>(data)[i];
    case RealType::f64:
      return static_cast<const double*>(data)[i];
    case RealType::bf16:
      return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case RealType::f16:
      return half_to_float(static_cast<const uint16_t*>(data)[i]);
    case RealType::i64:
      return static_cast<double>(static_cast<const int64_t*>(data)[i]);
    case RealType::i32:
      return static_cast<const int32_t*>(data)[i];
    case RealType::i16:
      return static_cast<const int16_t*>(data)[i];
    case RealType::i8:
      return static_cast<const int8_t*>(data)[i];
    case RealType::u8:
      return static_cast<const uint8_t*>(data)[i];
  }
  return NAN;
}

__device__ inline double real_at(const Reals& reals, int64_t i) {
  return read_real(reals.data, reals.type, i);
}

using Counter = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

// Whether all other blocks that draw from this ticket have drawn: what they wrote before is visible then. For every
// thread of the block; `drawn` is the block's own.
__device__ inline bool draws_last(unsigned* ticket, unsigned draws, bool& drawn) {
  __syncthreads();
  if (threadIdx.x == 0) {
    drawn = Counter(*ticket).fetch_add(1, ::cuda::memory_order_acq_rel) == draws - 1;
  }
  __syncthreads();
  return drawn;
}

}  // namespace fdkernels::cuda
