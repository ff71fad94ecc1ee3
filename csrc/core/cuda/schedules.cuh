// The two schedules of csrc/core/plan.h over an op's samples, each in one launch. csrc/core/sample.h is what one thread
// does; here threads, blocks and teams add up their sums.
//
// Sums are added in an order that the plan fixes, so results have the same bits every time. The last block to finish
// reports: no other block will read what it writes.
//
// An Op is a struct of types and static functions:
//
//   Call                     what its kernels take, derived from Teams; has p: batch, elements, aligned
//   Shared                   a block's shared memory, derived from TeamShared
//   Math                     csrc/core/sample.h
//   kExchanged               doubles that the blocks of a sample exchange
//   begin(call, elements, shared)           by all threads with elements, before their first sample
//   ahead(call, group, shared, has_read)    by the threads without elements, while the others load; has_read(): this
//                                           thread no longer reads state that report() changes
//   to_values(sums, values)                 a thread's sums as doubles to exchange
//   finish(call, b, totals, reports, shared)  by a block's first warp: shared.coefficient, from a sample's totals; one
//                                           block of the team reports
//   stores(call)                            whether there is a gradient to store
//   report(call, elements, shared)          by the last block
#pragma once

#include <cooperative_groups.h>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/teams.h"
#include "core/sample.h"

namespace fdkernels::cuda {

constexpr int kMaxCluster = 1 << (kClusterSizes - 1);

template <int kExchanged>
struct TeamShared {
  Scratch scratch;
  double exchanged[2][kMaxCluster][kExchanged];  // of every block of the cluster, at even samples and at odd ones
  double coefficient;                            // of the sample at hand
  bool drawn;
};

// A block's barriers but for 0, which is everyone's, by who meets there.
enum Barrier : int { kOfElements = 1, kOfAhead, kBetween };

extern __shared__ uint4 dynamic_shared[];

// A team's samples take turns where there are two buffers.
__device__ inline Words* hold_of(const Teams& call, int turn) {
  const int64_t half = call.buffers == 2 && turn % 2 == 1 ? call.held_bytes / 2 : 0;
  return reinterpret_cast<Words*>(reinterpret_cast<char*>(dynamic_shared) + half);
}

// Starts to move the beginning of a block's share of sample b from memory to L2. One thread an input.
__device__ inline void prefetch(const Teams& call, int64_t b, const Part& part) {
#if __CUDA_ARCH__ >= 900
  if (static_cast<int>(threadIdx.x) >= call.prefetched_inputs) return;
  const Samples& samples = call.inputs[threadIdx.x];
  const int64_t end = part.begin + call.prefetched < part.end ? part.begin + call.prefetched : part.end;
  const int64_t size = size_of(samples.dtype), row = b * samples.batch_stride;
  // Whole units of 16 bytes: from the one that the share begins in to the last that is full.
  const auto address = reinterpret_cast<uintptr_t>(samples.data);
  const uintptr_t from = (address + (row + part.begin) * size) / 16 * 16, to = (address + (row + end) * size) / 16 * 16;
  if (from >= to) return;
  prefetch_to_cache(from, static_cast<unsigned>(to - from));
#endif
}

template <int kExchanged>
__device__ inline Group elements_of(const Teams& call, TeamShared<kExchanged>& shared) {
  return {0, static_cast<int>(blockDim.x) - call.weighing, kOfElements, shared.scratch};
}

// By the threads without elements.
template <class Op, class HasRead>
__device__ inline void go_ahead(const typename Op::Call& call, typename Op::Shared& shared, const HasRead& has_read) {
  const Group group{static_cast<int>(blockDim.x) - call.weighing, call.weighing, kOfAhead, shared.scratch};
  Op::ahead(call, group, shared, has_read);
  barrier_arrive(kBetween, static_cast<int>(blockDim.x));
}

// By all threads with elements: one warp alone could wait, but compute-sanitizer's racecheck takes what it writes then
// for a race where the others are at another barrier already.
__device__ inline void wait_for_ahead(const Teams& call) {
  if (call.weighing > 0) barrier_sync(kBetween, static_cast<int>(blockDim.x));
}

// One cluster a sample. Partial sums go to every block of it through distributed shared memory.
template <class Op>
__device__ inline void by_clusters(const typename Op::Call& call, typename Op::Shared& shared) {
  constexpr int kExchanged = Op::kExchanged;
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  const int team = cluster.num_blocks(), rank = cluster.block_rank();
#else
  constexpr int team = 1, rank = 0;
#endif
  const int64_t teams = gridDim.x / team, first = blockIdx.x / team;
  const Group elements = elements_of(call, shared);
#if __CUDA_ARCH__ >= 900
  if (team > 1) cluster.barrier_arrive();  // no block may write to one that has not begun
#endif
  if (static_cast<int>(threadIdx.x) >= elements.threads) {
#if __CUDA_ARCH__ >= 900
    if (team > 1) cluster.barrier_wait();
    // The first sample's sums need not wait for these threads. But once the cluster has met, it may draw the last
    // ticket, and the state moves.
    go_ahead<Op>(call, shared, [&] {
      if (team > 1) cluster.barrier_arrive();
    });
    if (team > 1) cluster.barrier_wait();
#else
    go_ahead<Op>(call, shared, [] {});
#endif
    return;
  }
  const Part part = part_of(call.p.elements, call.share, call.held, rank, elements.thread(), elements.threads);
  prefetch(call, first, part);
  Op::begin(call, elements, shared);
#if __CUDA_ARCH__ >= 900
  if (team > 1) cluster.barrier_wait();
#endif

  bool odd = false;
  for (int64_t b = first; b < call.p.batch; b += teams, odd = !odd) {
    Words* hold = hold_of(call, 0);
    double values[kExchanged];
    typename Op::Math math(call.p, b, part);
    Op::to_values(gather(math, call.p.aligned, part, hold), values);
    if (b + teams < call.p.batch) prefetch(call, b + teams, part);
    double total = elements.combine<Add>(values);
#if __CUDA_ARCH__ >= 900
    if (team > 1) {
      constexpr int kEach = kLanes<kExchanged>;
      if (warp() == 0) {
#pragma unroll 1
        for (int other = lane() % kEach; other < team; other += kEach) {
          cluster.map_shared_rank(shared.exchanged[odd][rank], other)[lane() / kEach] = total;
        }
      }
      cluster.sync();
      if (warp() == 0) total = combine_rows<Add, kExchanged>(shared.exchanged[odd], team);
    }
#endif
    if (b == first) wait_for_ahead(call);
    if (warp() == 0) {
      spread(total, values);
      Op::finish(call, b, values, rank == 0, shared);
    }
    elements.sync();
    if (Op::stores(call)) {
      typename Op::Math stored(call.p, b, part, shared.coefficient);
      scatter(stored, call.p.aligned, part, hold);
    }
  }
  // No block writes to another's memory from here on, so a cluster's blocks may leave one by one.
  if (rank == 0 && draws_last(elements, call.tickets, static_cast<unsigned>(teams), shared.drawn)) {
    Op::report(call, elements, shared);
    if (threadIdx.x == 0) *call.tickets = 0;
  }
}

// A resident grid, a part of it a sample: team k takes samples k, k + teams, ... Each block leaves its sums of one in
// memory, arrives, and loads its share of the next before it waits for its team to have arrived at the first. A team's
// arrivals at even turns and at odd ones are counted apart, since a block may be one turn ahead of another.
template <class Op>
__device__ inline void by_grid(const typename Op::Call& call, typename Op::Shared& shared) {
  constexpr int kExchanged = Op::kExchanged;
  const int teams = call.teams, team = static_cast<int>(gridDim.x) / teams;
  const int first = static_cast<int>(blockIdx.x) / team, rank = static_cast<int>(blockIdx.x) - first * team;
  const Group elements = elements_of(call, shared);
  if (static_cast<int>(threadIdx.x) >= elements.threads) return go_ahead<Op>(call, shared, [] {});
  const Part part = part_of(call.p.elements, call.share, call.held, rank, elements.thread(), elements.threads);
  prefetch(call, first, part);
  Op::begin(call, elements, shared);

  unsigned* arrivals = call.tickets + 1 + 2 * first;
  const int turns = static_cast<int>((call.p.batch - first + teams - 1) / teams);
  const int ahead = call.buffers - 1;
  for (int loaded = 0; loaded < turns + ahead; ++loaded) {
    if (loaded < turns) {
      const int64_t b = first + static_cast<int64_t>(loaded) * teams;
      double values[kExchanged];
      typename Op::Math math(call.p, b, part);
      Op::to_values(gather(math, call.p.aligned, part, hold_of(call, loaded)), values);
      if (loaded + 1 < turns) prefetch(call, b + teams, part);
      elements.reduce<Add>(values);
      if (threadIdx.x == 0) {
        double* to = call.exchange + (b * team + rank) * kExchanged;
#pragma unroll
        for (int n = 0; n < kExchanged; ++n) to[n] = values[n];
        Counter(arrivals[loaded % 2]).fetch_add(1, ::cuda::memory_order_release);
      }
    }
    const int turn = loaded - ahead;
    if (turn < 0) continue;
    const int64_t b = first + static_cast<int64_t>(turn) * teams;
    if (threadIdx.x == 0) {
      const unsigned wanted = static_cast<unsigned>(team) * static_cast<unsigned>(turn / 2 + 1);
      const Counter arrived(arrivals[turn % 2]);
      while (arrived.load(::cuda::memory_order_acquire) < wanted) __nanosleep(32);
    }
    elements.sync();
    double values[kExchanged] = {};
#pragma unroll 1
    for (int other = elements.thread(); other < team; other += elements.threads) {
      const double* from = call.exchange + (b * team + other) * kExchanged;
#pragma unroll
      for (int n = 0; n < kExchanged; ++n) values[n] += __ldcg(from + n);
    }
    elements.reduce<Add>(values);
    if (turn == 0) wait_for_ahead(call);
    if (warp() == 0) Op::finish(call, b, values, rank == 0, shared);
    elements.sync();
    if (Op::stores(call)) {
      typename Op::Math stored(call.p, b, part, shared.coefficient);
      scatter(stored, call.p.aligned, part, hold_of(call, turn));
    }
  }
  if (draws_last(elements, call.tickets, gridDim.x, shared.drawn)) {
    Op::report(call, elements, shared);
    elements.each(1 + 2 * teams, [&](int64_t i) { call.tickets[i] = 0; });
  }
}

}  // namespace fdkernels::cuda
