// The flagship op in CUDA: from logits to the student's gradient in one launch.
//
//   s_b  = 1 / (max(mean_i |x_bi - tau_bi|, floor) + eps)      dmd_scale; else 1
//   g_bi = h_b s_b m_bi c_bi (f_bi - tau_bi)                   f, tau raw predictions, m the multiplier
//   loss = 1/2 sum g^2 / N,   gradient = g / N
//
// A team of blocks holds a sample: each block loads its share once, keeps the gradient's direction in shared memory and
// adds up its sums; the team adds those; each block stores its share of the gradient. csrc/core/sample.h is what a
// thread does, of csrc/fdiv/elements.h; csrc/core/plan.h decides the team. Bytes an element: 8 in bfloat16, 16 in
// float32, while a sample fits.
//
// Sums are added in an order that the plan fixes, so results have the same bits every time. Each sample's
// team stores five sums. The last team to finish adds all of them in index order, and writes loss, figures and the
// normalizer's state, which no other block will read again.
//
// Where a call has logits, a block's last warps have no elements: they weigh the batch while the others load, and are
// done. The others wait for h where their first coefficient needs it.
#pragma once

#include <cooperative_groups.h>

#include "fdiv/cuda/weigh.cuh"
#include "fdiv/elements.h"

namespace fdkernels::cuda {

constexpr int kMaxCluster = 1 << (kClusterSizes - 1);

struct Shared {
  Scratch scratch;
  double exchanged[2][kMaxCluster][kExchanged];  // of every block of the cluster, at even samples and at odd ones
  Weighed weighed;
  double divisor;  // N of the loss, but for "none" with a mask
  double coefficient;
  bool drawn;
};

static_assert(sizeof(Shared) <= kStaticShared);

// A block's barriers but for 0, which is everyone's, by who meets there.
enum Barrier : int { kOfElements = 1, kOfWeighing, kOfWeights };

extern __shared__ uint4 dynamic_shared[];

// ---- before the first sample

// A team's samples take turns where there are two buffers.
__device__ inline Words* hold_of(const Call& call, int turn) {
  const int64_t half = call.buffers == 2 && turn % 2 == 1 ? call.held_bytes / 2 : 0;
  return reinterpret_cast<Words*>(reinterpret_cast<char*>(dynamic_shared) + half);
}

// The weights' shared memory, behind the samples'.
__device__ inline Weights weights_of(const Call& call) {
  const int64_t batch = call.p.batch;
  double* h = reinterpret_cast<double*>(reinterpret_cast<char*>(dynamic_shared) + call.held_bytes);
  double* means = h + 2 * batch;
  return {h, h + batch, means, reinterpret_cast<int*>(means + call.w.state.bins)};
}

// The beginning of a block's share of a sample, on its way from memory to L2 while something else is waited for. A
// thread an input.
__device__ inline void prefetch(const Call& call, int64_t b, const Part& part) {
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

// Kept elements of all samples, of a mean over a mask.
__device__ inline double count_kept(const Call& call, const Group& group) {
  const Table& mask = call.p.mask;
  const int64_t rows = mask.batch_stride == 0 ? 1 : call.p.batch;
  double kept[1] = {0};
  if (call.counts != nullptr) {
    group.each(call.count_parts, [&](int64_t i) { kept[0] += call.counts[i]; });
  } else {
    kept[0] = static_cast<double>(kept_entries(mask, rows, group.thread(), group.threads));
  }
  group.reduce<Add>(kept);
  return kept[0] * static_cast<double>(call.p.elements / mask.entries) * static_cast<double>(call.p.batch / rows);
}

__device__ inline double at_least_one(double divisor) {
  return divisor < 1 ? 1 : divisor;  // NaN stays NaN
}

// N of the loss, but for "none" with a mask, which divides by each sample's own.
template <bool kGeneral>
__device__ inline double divisor_of(const Call& call, const Group& group) {
  const Problem& p = call.p;
  if (p.reduction == Reduction::sum) return 1;
  if (p.reduction == Reduction::none) return static_cast<double>(p.elements);
  if (call.host_count != 0) return call.host_count;
  if (call.count.data != nullptr) return at_least_one(real_at(call.count, 0));
  if (kGeneral && p.mask.data != nullptr) return ::fmax(1.0, count_kept(call, group));
  return static_cast<double>(p.batch) * static_cast<double>(p.elements);
}

__device__ inline Group elements_of(const Call& call, Shared& shared) {
  return {0, static_cast<int>(blockDim.x) - call.weighing, kOfElements, shared.scratch};
}

// By the threads without elements, which are done when h is there.
template <class HasRead>
__device__ inline void weigh(const Call& call, Shared& shared, const HasRead& has_read) {
  const Group group{static_cast<int>(blockDim.x) - call.weighing, call.weighing, kOfWeighing, shared.scratch};
  weigh_batch(group, call.w, call.p.batch, weights_of(call), shared.weighed, has_read);
  barrier_arrive(kOfWeights, static_cast<int>(blockDim.x));
}

// By all threads with elements: one warp alone could wait for h, but compute-sanitizer's racecheck takes what it writes
// then for a race where the others are at another barrier already.
__device__ inline void wait_for_weights(const Call& call) {
  if (call.weighing > 0) barrier_sync(kOfWeights, static_cast<int>(blockDim.x));
}

// ---- a sample

// What multiplies a sample's direction, from its team's sums; `reports`: the thread that records what it leaves.
__device__ inline double finish_sample(const Call& call, int64_t b, Sums sums, double divisor, bool reports) {
  const Problem& p = call.p;
  const Results& r = call.r;
  const double h = call.w.logits.data != nullptr ? weights_of(call).h[b] : given_weight(call.w, b);
  const double w = sample_weight(p, b, h, sums);
  const bool alone = p.reduction == Reduction::none;
  if (alone && p.mask.data != nullptr) divisor = ::fmax(1.0, sums.kept);
  const double power = r.unscale != nullptr ? float16_power(divisor) : 1.0;
  if (reports) {
    const double energy = w == 0 ? 0.0 : w * w * sums.energy;
    const double loss = 0.5 * energy / divisor;
    if (alone && r.wide_loss) static_cast<double*>(r.loss)[b] = loss;
    if (alone && !r.wide_loss) static_cast<float*>(r.loss)[b] = static_cast<float>(loss);
    if (r.unscale != nullptr && (alone || b == 0)) r.unscale[b] = static_cast<float>(1.0 / power);
    double* record = r.records + b;
    record[0] = energy;
    record[p.batch] = energy / (divisor * divisor);
    record[2 * p.batch] = sums.nonfinite ? 0.0 : sums.gap;
    record[3 * p.batch] = sums.nonfinite ? 0.0 : sums.distance;
    record[4 * p.batch] = sums.nonfinite;
  }
  return w / divisor * power;
}

// What is not finite has no energy to add: a NaN says so.
__device__ inline void to_values(const Sums& sums, double (&values)[kExchanged]) {
  values[0] = sums.distance, values[1] = sums.nonfinite ? NAN : sums.energy, values[2] = sums.gap;
  values[3] = sums.kept;
}

__device__ inline Sums to_sums(const double (&values)[kExchanged]) {
  return {values[0], values[1], values[2], values[1] != values[1], values[3]};
}

// By the first warp, from the totals of a sample's team.
__device__ inline void finish(const Call& call, int64_t b, const double (&totals)[kExchanged], bool reports,
                              Shared& shared) {
  if (lane() == 0) shared.coefficient = finish_sample(call, b, to_sums(totals), shared.divisor, reports);
}

// ---- after the last sample

__device__ inline void report(const Call& call, const Group& group, Shared& shared) {
  const Problem& p = call.p;
  const Results& r = call.r;
  const bool weighs = call.w.logits.data != nullptr, normalized = call.w.state.mean != nullptr;
  const bool given = r.stats != nullptr && r.weight_stats && !weighs;
  double totals[kMaxSums] = {};
  Extremes found = no_extremes();
  group.each(given ? p.batch : 0, [&](int64_t b) {
    const double h = given_weight(call.w, b);
    r.stats[kStats + b] = h;
    if (!is_finite(h)) return;
    found = {::fmin(found.lowest, h), ::fmax(found.highest, h)};
    totals[kRecorded] += 1, totals[kRecorded + 1] += h, totals[kRecorded + 2] += h * h;
  });
  group.each(p.batch, [&](int64_t b) {
#pragma unroll
    for (int n = 0; n < kRecorded; ++n) totals[n] += __ldcg(r.records + n * p.batch + b);
    if (r.stats != nullptr && weighs) r.stats[kStats + b] = weights_of(call).h[b];
  });
  group.reduce<Add>(totals);
  if (given) {
    double extremes[2] = {-found.lowest, found.highest};
    group.reduce<Max>(extremes);
    found = {-extremes[0], extremes[1]};
  }
  if (threadIdx.x == 0) {
    const double loss = 0.5 * totals[0] / shared.divisor;
    if (p.reduction != Reduction::none && r.wide_loss) *static_cast<double*>(r.loss) = loss;
    if (p.reduction != Reduction::none && !r.wide_loss) *static_cast<float*>(r.loss) = static_cast<float>(loss);
    if (r.stats != nullptr) {
      r.stats[kWeightStats] = ::sqrt(totals[1]);
      r.stats[kWeightStats + 1] = totals[2] / totals[3];
      r.stats[kWeightStats + 2] = totals[4];
    }
    if (r.stats != nullptr && r.weight_stats) {
      Weighed weighed = shared.weighed;
      if (given) weighed = {{totals[kRecorded], 0, 0, 0, totals[kRecorded + 1], totals[kRecorded + 2]}, found};
      weight_stats(weighed.sums, weighed.extremes, p.batch, normalized, given, r.stats);
    }
  }
  if (weighs && normalized && call.w.state.update) store_means(group, call.w.state, weights_of(call).means);
}

// ---- the two schedules

// One cluster a sample. Partial sums go to every block of it through distributed shared memory.
template <class Ty, bool kGeneral>
__global__ void __launch_bounds__(most_threads(kGeneral), 1) fdiv_cluster_kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
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
    // The first sample's sums need not wait for the weights. But once they have met, the cluster may draw the last
    // ticket, and the state moves.
    weigh(call, shared, [&] {
      if (team > 1) cluster.barrier_arrive();
    });
    if (team > 1) cluster.barrier_wait();
#else
    weigh(call, shared, [] {});
#endif
    return;
  }
  const Part part = part_of(call.p.elements, call.share, call.held, rank, elements.thread(), elements.threads);
  prefetch(call, first, part);
  const double divisor = divisor_of<kGeneral>(call, elements);
  if (threadIdx.x == 0) shared.divisor = divisor;
#if __CUDA_ARCH__ >= 900
  if (team > 1) cluster.barrier_wait();
#endif

  bool odd = false;
  for (int64_t b = first; b < call.p.batch; b += teams, odd = !odd) {
    Words* hold = hold_of(call, 0);
    double values[kExchanged];
    FdivMath<Ty, kGeneral> math(call.p, b, part);
    to_values(gather(math, call.p.aligned, part, hold), values);
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
    if (b == first) wait_for_weights(call);
    if (warp() == 0) {
      spread(total, values);
      finish(call, b, values, rank == 0, shared);
    }
    elements.sync();
    if (call.p.gradient != nullptr) {
      FdivMath<Ty, kGeneral> stored(call.p, b, part, shared.coefficient);
      scatter(stored, call.p.aligned, part, hold);
    }
  }
  // No block writes to another's memory from here on, so a cluster's blocks may leave one by one.
  if (rank == 0 && draws_last(elements, call.r.tickets, static_cast<unsigned>(teams), shared.drawn)) {
    report(call, elements, shared);
    if (threadIdx.x == 0) *call.r.tickets = 0;
  }
}

// A resident grid, a part of it a sample: team k takes samples k, k + teams, ... Each block leaves its sums of one in
// memory, arrives, and loads its share of the next before it waits for its team to have arrived at the first. A team's
// arrivals at even turns and at odd ones are counted apart, since a block may be one turn ahead of another.
template <class Ty, bool kGeneral>
__global__ void __launch_bounds__(kMaxThreads, 1) fdiv_grid_kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
  const int teams = call.teams, team = static_cast<int>(gridDim.x) / teams;
  const int first = static_cast<int>(blockIdx.x) / team, rank = static_cast<int>(blockIdx.x) - first * team;
  const Group elements = elements_of(call, shared);
  if (static_cast<int>(threadIdx.x) >= elements.threads) return weigh(call, shared, [] {});
  const Part part = part_of(call.p.elements, call.share, call.held, rank, elements.thread(), elements.threads);
  prefetch(call, first, part);
  const double divisor = divisor_of<kGeneral>(call, elements);
  if (threadIdx.x == 0) shared.divisor = divisor;

  unsigned* arrivals = call.r.tickets + 1 + 2 * first;
  const int turns = static_cast<int>((call.p.batch - first + teams - 1) / teams);
  const int ahead = call.buffers - 1;
  for (int loaded = 0; loaded < turns + ahead; ++loaded) {
    if (loaded < turns) {
      const int64_t b = first + static_cast<int64_t>(loaded) * teams;
      double values[kExchanged];
      FdivMath<Ty, kGeneral> math(call.p, b, part);
      to_values(gather(math, call.p.aligned, part, hold_of(call, loaded)), values);
      if (loaded + 1 < turns) prefetch(call, b + teams, part);
      elements.reduce<Add>(values);
      if (threadIdx.x == 0) {
        double* to = call.r.exchange + (b * team + rank) * kExchanged;
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
      const double* from = call.r.exchange + (b * team + other) * kExchanged;
#pragma unroll
      for (int n = 0; n < kExchanged; ++n) values[n] += __ldcg(from + n);
    }
    elements.reduce<Add>(values);
    if (turn == 0) wait_for_weights(call);
    if (warp() == 0) finish(call, b, values, rank == 0, shared);
    elements.sync();
    if (call.p.gradient != nullptr) {
      FdivMath<Ty, kGeneral> stored(call.p, b, part, shared.coefficient);
      scatter(stored, call.p.aligned, part, hold_of(call, turn));
    }
  }
  if (draws_last(elements, call.r.tickets, gridDim.x, shared.drawn)) {
    report(call, elements, shared);
    elements.each(1 + 2 * teams, [&](int64_t i) { call.r.tickets[i] = 0; });
  }
}

// ---- the combinations that are compiled: 12 a schedule

#define FDK_KERNEL_TABLE(kernel)                                                                             \
  switch (loads) {                                                                                           \
    case Loads::bf16:                                                                                        \
      return general ? kernel<Types<Bf16, Bf16, float>, true> : kernel<Types<Bf16, Bf16, float>, false>;     \
    case Loads::f16:                                                                                         \
      return general ? kernel<Types<Half, Half, float>, true> : kernel<Types<Half, Half, float>, false>;     \
    case Loads::f32:                                                                                         \
      return general ? kernel<Types<float, float, float>, true> : kernel<Types<float, float, float>, false>; \
    case Loads::bf16_f32:                                                                                    \
      return general ? kernel<Types<Bf16, float, float>, true> : kernel<Types<Bf16, float, float>, false>;   \
    case Loads::f16_f32:                                                                                     \
      return general ? kernel<Types<Half, float, float>, true> : kernel<Types<Half, float, float>, false>;   \
    case Loads::any_f32:                                                                                     \
      return general ? kernel<Types<AnyType, AnyType, float>, true> : nullptr;                               \
    case Loads::any_f64:                                                                                     \
      return general ? kernel<Types<AnyType, AnyType, double>, true> : nullptr;                              \
  }                                                                                                          \
  return nullptr;

}  // namespace fdkernels::cuda
