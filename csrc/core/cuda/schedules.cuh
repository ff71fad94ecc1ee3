// The device code of the two schedules of core/plan.h, for any op; each is one launch. First one thread's work on its
// part of a sample: `gather` loads the inputs, adds up the sums and keeps on chip what the gradient will need;
// `scatter` stores the gradient. Then how threads, blocks and teams add up their sums. Words:
//
//   team, rank   the blocks that share a sample; a block's number in its team
//   share        the elements of a sample that one block takes
//   turn         the number of a sample in its team's order: team k of n takes sample k + t n in turn t
//   hold         where a block holds a share's values in shared memory, from their sums to the store of the gradient
//   ahead        done by a block's last warps, which have no elements, while its other threads load and add up
//   ticket       counters in global memory: blocks that are done, and blocks of a grid that have arrived
//   record       a sample's values in global memory that the last block adds up for the report
//
// Sums are added in an order that the plan fixes, so results have the same bits every time. The last block to finish
// reports, and may change state: no other block reads it any more.
//
// An Op is a struct of types and static functions:
//
//   Call                     the kernels' parameter, derived from Teams; its p has batch, elements and aligned
//   Shared                   a block's static shared memory, derived from TeamShared, with the type of the coefficient:
//                            what a Math that stores needs of a sample
//   Math                     the arithmetic of one sample, see below
//   kExchanged               doubles per sample that each block of a team gives to the others: 1, 2, 4 or 8
//   begin(call, elements, shared)           run by all threads with elements, before their first sample. It may write
//                                           global memory that report() reads: every team has a sample
//   ahead(call, group, shared, has_read)    run by the threads without elements. Each calls has_read() after its last
//                                           read of state that report() changes
//   to_values(sums, values)                 a thread's sums as doubles to exchange
//   finish(call, b, totals, reports, shared)  run by a block's first warp: sets shared.coefficient from a sample's
//                                           totals. One block of the team `reports`: it writes the sample's record
//   stores(call)                            whether there is a gradient to store
//   report(call, elements, shared)          run by the last block: writes the results of the batch
//
// A Math is made for one sample: its operands and its arithmetic. It works on W elements at a time: an
// aligned vector (or kWidth elements of it), or one element where a sample ends within a vector or is not aligned.
//
//   T, Sums, Partial   type of the arithmetic; sums in double; sums of a few vectors in T
//   kHeld              values of T that stay on chip for each element; `values` has W first ones, then W second ones
//   kVector            elements of a vector
//   kWidth             elements of a whole vector that are taken at a time
//   kInFlight          whole vectors whose loads are in flight at a time; 1 if kWidth is smaller than a vector
//   together()         whether kWidth elements may be taken at a time
//   gather<W>(at, values, partial)       adds elements at, at + 1, ... to partial; sets the values to keep on chip
//   gather_vectors<K>(v, hold, partial)  adds K whole vectors, v and this thread's next ones, and keeps their values
//   add(total, partial)                  returns false if the partial sums in T cannot be trusted
//   is_sound(total, held)                whether the sums can be used; held: no add() has returned false
//   add_carefully(again, at)             if they cannot: adds an element in double
//   merged(total, held, again)           the sums to return after that
//   stores_vectors()                     whether the gradient may be stored more than one element at a time
//   recompute<W>(at, values)             values that did not stay on chip, from inputs read again
//   store<W>(at, values)                 stores the gradient's elements
#pragma once

#include <cooperative_groups.h>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/teams.h"
#include "core/share.h"
#include "core/vectors.h"

namespace fdkernels::cuda {

// ---- one thread

// Vectors that a thread adds up in T before it adds to the sums in double: sixteen elements, no more. In a long running
// sum of equal numbers, each addition may round the same way.
template <class Math>
constexpr int kRun = std::max(Math::kInFlight, 16 / Math::kVector);

// Returns the sums over a part. The values of the share's first part.held vectors stay in `hold`.
template <class Math>
__device__ inline typename Math::Sums gather(Math& math, bool aligned, const Part& part, Words* hold) {
  using T = typename Math::T;
  constexpr int V = Math::kVector, W = Math::kWidth, kInFlight = Math::kInFlight, kHeld = Math::kHeld;
  const Vectors vectors = vectors_of<V>(aligned, part);
  const int whole = math.together() ? vectors.whole : 0;
  typename Math::Sums total;
  bool held = true;  // T held all partial sums; part.held counts vectors
#pragma unroll 1
  for (int first = part.thread; first < vectors.all; first += kRun<Math> * part.threads) {
    const int last = first + kRun<Math> * part.threads < vectors.all ? first + kRun<Math> * part.threads : vectors.all;
    typename Math::Partial partial;
#pragma unroll 1
    for (int v = first; v < last;) {
      if constexpr (kInFlight > 1) {
        if (v + (kInFlight - 1) * part.threads < (whole < last ? whole : last)) {
          math.template gather_vectors<kInFlight>(v, hold, partial);
          v += kInFlight * part.threads;
          continue;
        }
      }
      if (v < whole) {
        if constexpr (kInFlight > 1) {
          math.template gather_vectors<1>(v, hold, partial);
        } else {
#pragma unroll 1
          for (int at = v * V; at < v * V + V; at += W) {
            T values[kHeld * W];
            math.template gather<W>(at, values, partial);
            if (v < part.held) keep_each<V, kHeld>(hold, part.held, at, values);
          }
        }
      } else {
        for_elements<V>(part, v, [&](int at) {
          T values[kHeld];
          math.template gather<1>(at, values, partial);
          if (v < part.held) keep_each<V, kHeld>(hold, part.held, at, values);
        });
      }
      v += part.threads;
    }
    held = math.add(total, partial) && held;
  }
  if (math.is_sound(total, held)) return total;
  typename Math::Sums again;
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    for_elements<V>(part, v, [&](int at) { math.add_carefully(again, at); });
  }
  return math.merged(total, held, again);
}

// Stores the gradient of a part, from the values in `hold`, and beyond those from inputs that are read again.
template <class Math>
__device__ inline void scatter(Math& math, bool aligned, const Part& part, const Words* hold) {
  using T = typename Math::T;
  constexpr int V = Math::kVector, W = Math::kWidth, kHeld = Math::kHeld;
  const Vectors vectors = vectors_of<V>(aligned, part);
  const int whole = math.stores_vectors() ? vectors.whole : 0;
  const bool by_width = math.together();
#pragma unroll 1
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    const bool held = v < part.held;
    if (v < whole && held) {
      T values[kHeld * V];
      recall_each<V, kHeld>(hold, part.held, v * V, values);
      math.template store<V>(v * V, values);
    } else if (v < whole && by_width) {
#pragma unroll 1
      for (int at = v * V; at < v * V + V; at += W) {
        T values[kHeld * W];
        math.template recompute<W>(at, values);
        math.template store<W>(at, values);
      }
    } else {
      for_elements<V>(part, v, [&](int at) {
        T values[kHeld];
        if (held) {
          recall_each<V, kHeld>(hold, part.held, at, values);
        } else {
          math.template recompute<1>(at, values);
        }
        math.template store<1>(at, values);
      });
    }
  }
}

// ---- a block

constexpr int kMaxCluster = 1 << (kClusterSizes - 1);

template <int kExchanged, class Coefficient = double>
struct TeamShared {
  static_assert(kExchanged <= kMaxSums && kWarp % kExchanged == 0, "the lanes of a warp are divided among the values");
  Scratch scratch;
  // The sums of all blocks of a cluster, at even and at odd turns: a fast block may write those of its next sample
  // while a slow one still reads these.
  double exchanged[2][kMaxCluster][kExchanged];
  Coefficient coefficient;  // of the current sample
  bool drawn;
};

// A block's named barriers: of the threads with elements, of those that work ahead, and between the two.
enum Barrier : int { kOfElements = 1, kOfAhead, kBetween };

extern __shared__ uint4 dynamic_shared[];

// The memory that holds the values of a turn. With two buffers, turns alternate between them.
__device__ inline Words* hold_of(const Teams& call, int turn) {
  const int64_t half = call.buffers == 2 && turn % 2 == 1 ? call.held_bytes / 2 : 0;
  return reinterpret_cast<Words*>(reinterpret_cast<char*>(dynamic_shared) + half);
}

// Starts to prefetch the first elements of a block's share of sample b into L2. One thread per input.
__device__ inline void prefetch(const Teams& call, int64_t b, const Part& part) {
#if __CUDA_ARCH__ >= 900
  if (static_cast<int>(threadIdx.x) >= call.prefetched_inputs) return;
  const Samples& samples = call.inputs[threadIdx.x];
  const int64_t end = part.begin + call.prefetched < part.end ? part.begin + call.prefetched : part.end;
  const int64_t size = size_of(samples.dtype), row = b * samples.batch_stride;
  // Whole units of 16 bytes: from the one in which the share begins to the last full one.
  const auto address = reinterpret_cast<uintptr_t>(samples.data);
  const uintptr_t from = (address + (row + part.begin) * size) / 16 * 16, to = (address + (row + end) * size) / 16 * 16;
  if (from >= to) return;
  prefetch_to_cache(from, static_cast<unsigned>(to - from));
#endif
}

// The threads with elements: all but the last call.weighing ones.
__device__ inline Group elements_of(const Teams& call, Scratch& scratch) {
  return {0, static_cast<int>(blockDim.x) - call.weighing, kOfElements, scratch};
}

// Run by the threads without elements: they work ahead, then tell the others.
template <class Op, class HasRead>
__device__ inline void go_ahead(const typename Op::Call& call, typename Op::Shared& shared, const HasRead& has_read) {
  const Group group{static_cast<int>(blockDim.x) - call.weighing, call.weighing, kOfAhead, shared.scratch};
  Op::ahead(call, group, shared, has_read);
  barrier_arrive(kBetween, static_cast<int>(blockDim.x));
}

// Run by all threads with elements. One warp alone could wait, but if the others are already at another barrier,
// compute-sanitizer's racecheck then reports what that warp writes as a race.
__device__ inline void wait_for_ahead(const Teams& call) {
  if (call.weighing > 0) barrier_sync(kBetween, static_cast<int>(blockDim.x));
}

// The cluster schedule: a team is a cluster. Each block writes its sums into the shared memory of every block of its
// cluster.
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
  const Group elements = elements_of(call, shared.scratch);
#if __CUDA_ARCH__ >= 900
  if (team > 1) cluster.barrier_arrive();  // no block may write to one that has not begun
#endif
  if (static_cast<int>(threadIdx.x) >= elements.threads) {
#if __CUDA_ARCH__ >= 900
    if (team > 1) cluster.barrier_wait();
    // These threads arrive at the first sample's cluster.sync() as soon as they have read the state, so that its sums
    // need not wait for their work. Not earlier: once the cluster has met, a block may draw last, and report() changes
    // the state.
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

// The grid schedule: all blocks are resident, and a team is a part of them. Each block writes its sums of a sample to
// call.exchange and counts its arrival; with two buffers it then loads its share of the next sample; then it waits
// until its whole team has arrived. Arrivals at even and at odd turns have separate counters, since a block may be one
// turn ahead of another.
template <class Op>
__device__ inline void by_grid(const typename Op::Call& call, typename Op::Shared& shared) {
  constexpr int kExchanged = Op::kExchanged;
  const int teams = call.teams, team = static_cast<int>(gridDim.x) / teams;
  const int first = static_cast<int>(blockIdx.x) / team, rank = static_cast<int>(blockIdx.x) - first * team;
  const Group elements = elements_of(call, shared.scratch);
  if (static_cast<int>(threadIdx.x) >= elements.threads) return go_ahead<Op>(call, shared, [] {});
  const Part part = part_of(call.p.elements, call.share, call.held, rank, elements.thread(), elements.threads);
  prefetch(call, first, part);
  Op::begin(call, elements, shared);

  unsigned* arrivals = call.tickets + 1 + 2 * first;
  const int turns = static_cast<int>((call.p.batch - first + teams - 1) / teams);
  const int ahead = call.buffers - 1;  // turns by which loading is ahead of storing
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
