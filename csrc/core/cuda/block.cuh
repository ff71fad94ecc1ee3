// Work that the threads of a block do together: barriers, sums in a fixed order, reads of reals, draws of tickets.
#pragma once

#include <cuda/atomic>

#include "core/cuda/ptx.cuh"
#include "core/cuda/reals.h"
#include "core/numbers.h"
#include "core/plan.h"

namespace fdkernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxSums = 8;

// Where the warps of a group leave their totals for each other.
struct Scratch {
  double warps[(kMaxThreads + kMaxWeighing) / kWarp][kMaxSums];
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

// ---- N values at a time, N a power of two. Each step halves the number of values that a lane still combines; in the
// end, the kLanes<N> lanes from n * kLanes<N> on have the total of value n. So four values take 6 shuffles instead of
// 20, and eight take 9 instead of 40.

template <int N>
constexpr int kLanes = kWarp / N;

template <class Combine>
__device__ inline double combine_lanes(double value, int lanes) {
#pragma unroll
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value = Combine::of(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The sum over a warp, in every lane.
__device__ FDK_CALLED double add_lanes(double value) {
  return combine_lanes<Add>(value, kWarp);
}

// Combines N values over a warp.
template <class Combine, int N>
__device__ inline double combine_warp(const double (&given)[N]) {
  double values[N];
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = given[n];
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
    const int offset = half * kLanes<N>;
    const bool upper = (lane() & offset) != 0;
#pragma unroll
    for (int n = 0; n < half; ++n) {
      const double mine = upper ? values[n + half] : values[n], other = upper ? values[n] : values[n + half];
      values[n] = Combine::of(mine, __shfl_xor_sync(kAllLanes, other, offset));
    }
  }
  return combine_lanes<Combine>(values[0], kLanes<N>);
}

// Combines N values over the first `count` rows. Each warp that calls gets all totals.
template <class Combine, int N, int kWidth>
__device__ inline double combine_rows(const double (*rows)[kWidth], int count) {
  double value = Combine::kNeutral;
#pragma unroll 1
  for (int row = lane() % kLanes<N>; row < count; row += kLanes<N>) {
    value = Combine::of(value, rows[row][lane() / kLanes<N>]);
  }
  return combine_lanes<Combine>(value, kLanes<N>);
}

// Gives every lane the totals of all N values.
template <int N>
__device__ inline void spread(double value, double (&values)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = __shfl_sync(kAllLanes, value, n * kLanes<N>);
}

// Whole warps of a block that work together, and the number of the barrier that they meet at.
struct Group {
  int first, threads, barrier;
  Scratch& scratch;

  __device__ int thread() const {
    return static_cast<int>(threadIdx.x) - first;
  }
  __device__ void sync() const {
    barrier_sync(barrier, threads);
  }
  // Combines N values over the group. Each of its warps gets the totals. The order depends on the number of threads
  // alone. The group must meet before it combines again, which overwrites `scratch`.
  template <class Combine, int N>
  __device__ double combine(const double (&values)[N]) const {
    static_assert(N <= kMaxSums);
    const double value = combine_warp<Combine>(values);
    if (lane() % kLanes<N> == 0) scratch.warps[warp()][lane() / kLanes<N>] = value;
    sync();
    return combine_rows<Combine, N>(scratch.warps + first / kWarp, threads / kWarp);
  }
  // The same, with all totals in every thread. The group has met on return.
  template <class Combine, int N>
  __device__ void reduce(double (&values)[N]) const {
    spread(combine<Combine>(values), values);
    sync();
  }
  // Calls use(i) for each i < count, with one thread per index. Not unrolled: most threads take one index or none.
  template <class Use>
  __device__ void each(int64_t count, const Use& use) const {
#pragma unroll 1
    for (int64_t i = thread(); i < count; i += threads) use(i);
  }
  // The same with one warp per index if `by_warp`: use(i, first, step) takes parts first, first + step, ... of index i.
  template <class Use>
  __device__ void each(int64_t count, bool by_warp, const Use& use) const {
    const int share = by_warp ? kWarp : 1;
#pragma unroll 1
    for (int64_t i = by_warp ? thread() / kWarp : thread(); i < count; i += by_warp ? threads / kWarp : threads) {
      use(i, by_warp ? lane() : 0, share);
    }
  }
};

// ---- reals of any type. Loading and converting are apart, so that several loads can be in flight.

__device__ inline uint64_t load_real(const Reals& reals, int64_t i) {
  const int bytes = bytes_of(reals.type);
  const char* at = static_cast<const char*>(reals.data) + i * bytes;
  uint64_t bits = 0;
  if (bytes == 8) bits = *reinterpret_cast<const uint64_t*>(at);
  if (bytes == 4) bits = *reinterpret_cast<const uint32_t*>(at);
  if (bytes == 2) bits = *reinterpret_cast<const uint16_t*>(at);
  if (bytes == 1) bits = *reinterpret_cast<const uint8_t*>(at);
  return bits;
}

__device__ FDK_CALLED double to_double(uint64_t bits, RealType type) {
  switch (type) {
    case RealType::f32:
      return std::bit_cast<float>(static_cast<uint32_t>(bits));
    case RealType::f64:
      return std::bit_cast<double>(bits);
    case RealType::bf16:
      return bf16_to_float(static_cast<uint16_t>(bits));
    case RealType::f16:
      return half_to_float(static_cast<uint16_t>(bits));
    case RealType::i64:
      return static_cast<double>(static_cast<int64_t>(bits));
    case RealType::i32:
      return static_cast<int32_t>(bits);
    case RealType::i16:
      return static_cast<int16_t>(bits);
    case RealType::i8:
      return static_cast<int8_t>(bits);
    case RealType::u8:
      return static_cast<uint8_t>(bits);
  }
  return NAN;
}

__device__ inline double real_at(const Reals& reals, int64_t i) {
  return to_double(load_real(reals, i), reals.type);
}

using Counter = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

// Draws from a ticket, a counter of blocks that are done. True in the block that draws last, which then sees what all
// other blocks wrote before they drew. All threads of the group call this; `drawn` is in the block's shared memory.
__device__ inline bool draws_last(const Group& group, unsigned* ticket, unsigned draws, bool& drawn) {
  group.sync();
  if (threadIdx.x == 0) {
    drawn = Counter(*ticket).fetch_add(1, ::cuda::memory_order_acq_rel) == draws - 1;
  }
  group.sync();
  return drawn;
}

}  // namespace fdkernels::cuda
