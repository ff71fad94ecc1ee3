// The kernels of the op fdiv (fused_fdiv_loss): from logits to the student's gradient in one launch.
//
//   s_b  = 1 / (max(mean_i |x_bi - tau_bi|, floor) + eps)      dmd_scale; else 1
//   g_bi = h_b s_b m_bi c_bi (f_bi - tau_bi)                   f, tau raw predictions, m the multiplier
//   loss = 1/2 sum g^2 / N + the generator's term (fdiv/generator.h),   gradient = g / N
//
// core/cuda/schedules.cuh moves the data: a team of blocks loads a sample once, and holds the gradient's direction in
// shared memory until the sample's sums are known. Bytes per element: 8 in bfloat16, 16 in float32, while a sample
// fits. fdiv/elements.h has the math of an element. This file has the rest: the batch's weights, a sample's coefficient
// and its record, and the last block's report of loss, statistics and the normalizer's state.
//
// If a call has logits, a block's last warps have no elements: they weigh the batch (compute its weights h) while the
// others load.
#pragma once

#include "core/cuda/schedules.cuh"
#include "fdiv/cuda/weigh.cuh"
#include "fdiv/elements.h"

namespace fdkernels::cuda {

struct Shared : TeamShared<kExchanged> {
  Weighed weighed;
  double divisor;  // N of the loss; unused for "none" with a mask, where each sample has its own
};

static_assert(sizeof(Shared) <= kStaticShared);

// ---- before the first sample

// The weights' shared memory, which follows the samples'.
__device__ inline Weights weights_of(const Call& call) {
  const int64_t batch = call.p.batch;
  double* h = reinterpret_cast<double*>(reinterpret_cast<char*>(dynamic_shared) + call.held_bytes);
  double* means = h + 2 * batch;
  return {h, h + batch, means, reinterpret_cast<int*>(means + call.w.state.bins)};
}

// The kept elements of all samples: N of a mean with a mask.
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

// N of the loss. "none" with a mask does not use it: each sample has its own N there.
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

// The generator's term: sums over each sample's logits, and their gradient. A warp takes a sample. The samples go to
// all blocks of the grid, which have started to prefetch their elements.
__device__ FDK_CALLED void add_generator(const Call& call, int warps) {
  const Generator& g = call.g;
  const int64_t blocks = gridDim.x;
#pragma unroll 1
  for (int64_t b = blockIdx.x + blocks * warp(); b < call.p.batch; b += blocks * warps) {
    const bool used = !g.drops || is_finite(mean_of_heads(call.generator_logits, g.heads, b, lane(), kWarp));
    double sum = 0;
#pragma unroll 1
    for (int64_t at = b * g.heads + lane(); at < (b + 1) * g.heads; at += kWarp) {
      const double logit = real_at(call.generator_logits, at);
      const Softplus term = softplus_with_slope(-logit);
      if (used) sum += term.value;
      const double slope[1] = {used ? -g.gradient_scale * term.slope : 0.0};
      if (g.gradient != nullptr) write<AnyType>(g.gradient, g.logits.dtype, at, slope);
    }
    sum = add_lanes(sum);
    if (lane() == 0) g.sums[b] = sum;
  }
}

// ---- a sample

// The factor of a sample's direction, from its team's sums. One thread of the team `reports`: it writes the record, and
// with "none" the sample's loss.
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

// ---- after the last sample

// Run by the last block: returns the sum of all softplus terms. With "none" it adds each sample's own to its loss.
__device__ inline double report_generator(const Call& call, const Group& group) {
  const Generator& g = call.g;
  const bool alone = call.p.reduction == Reduction::none;
  double total[1] = {0};
  group.each(call.p.batch, [&](int64_t b) {
    const double sum = __ldcg(g.sums + b);
    total[0] += sum;
    double* wide = static_cast<double*>(call.r.loss) + b;
    float* loss = static_cast<float*>(call.r.loss) + b;
    if (alone && call.r.wide_loss) *wide = __ldcg(wide) + g.scale * sum;
    if (alone && !call.r.wide_loss) *loss = __ldcg(loss) + static_cast<float>(g.scale * sum);
    if (g.unscale != nullptr && (alone || b == 0)) g.unscale[b] = g.unscale_value;
  });
  group.reduce<Add>(total);
  return total[0];
}

// Run by the last block: adds up the records, and writes loss, statistics and the normalizer's state.
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
  const double generator = call.g.logits.data != nullptr ? report_generator(call, group) : NAN;
  if (given) {
    double extremes[2] = {-found.lowest, found.highest};
    group.reduce<Max>(extremes);
    found = {-extremes[0], extremes[1]};
  }
  if (threadIdx.x == 0) {
    double loss = 0.5 * totals[0] / shared.divisor;
    if (call.g.logits.data != nullptr) loss += call.g.scale * generator;
    if (p.reduction != Reduction::none && r.wide_loss) *static_cast<double*>(r.loss) = loss;
    if (p.reduction != Reduction::none && !r.wide_loss) *static_cast<float*>(r.loss) = static_cast<float>(loss);
    if (r.stats != nullptr) {
      r.stats[kWeightStats] = ::sqrt(totals[1]);
      r.stats[kWeightStats + 1] = totals[2] / totals[3];
      r.stats[kWeightStats + 2] = totals[4];
      r.stats[kWeightStats + 3] = generator * call.g.mean;
    }
    if (r.stats != nullptr && r.weight_stats) {
      Weighed weighed = shared.weighed;
      if (given) weighed = {{totals[kRecorded], 0, 0, 0, totals[kRecorded + 1], totals[kRecorded + 2]}, found};
      weight_stats(weighed.sums, weighed.extremes, p.batch, normalized, given, r.stats);
    }
  }
  if (weighs && normalized && call.w.state.update) store_means(group, call.w.state, weights_of(call).means);
}

// ---- the kernels

template <class Ty, bool kGeneral>
struct FdivOp {
  using Call = cuda::Call;
  using Shared = cuda::Shared;
  using Math = FdivMath<Ty, kGeneral>;
  static constexpr int kExchanged = cuda::kExchanged;

  __device__ static void begin(const Call& call, const Group& elements, Shared& shared) {
    if (call.g.logits.data != nullptr) add_generator(call, elements.threads / kWarp);
    const double divisor = divisor_of<kGeneral>(call, elements);
    if (threadIdx.x == 0) shared.divisor = divisor;
  }

  template <class HasRead>
  __device__ static void ahead(const Call& call, const Group& group, Shared& shared, const HasRead& has_read) {
    weigh_batch(group, call.w, call.p.batch, weights_of(call), shared.weighed, has_read);
  }

  // NaN as energy marks a sample that is not finite; finish() reads the mark.
  __device__ static void to_values(const Sums& sums, double (&values)[kExchanged]) {
    values[0] = sums.distance, values[1] = sums.nonfinite ? NAN : sums.energy, values[2] = sums.gap;
    values[3] = sums.kept;
  }

  __device__ static void finish(const Call& call, int64_t b, const double (&totals)[kExchanged], bool reports,
                                Shared& shared) {
    if (lane() != 0) return;
    const Sums sums{totals[0], totals[1], totals[2], totals[1] != totals[1], totals[3]};
    shared.coefficient = finish_sample(call, b, sums, shared.divisor, reports);
  }

  __device__ static bool stores(const Call& call) {
    return call.p.gradient != nullptr;
  }

  __device__ static void report(const Call& call, const Group& elements, Shared& shared) {
    cuda::report(call, elements, shared);
  }
};

template <class Ty, bool kGeneral>
__global__ void __launch_bounds__(most_threads(kGeneral), 1) fdiv_cluster_kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
  by_clusters<FdivOp<Ty, kGeneral>>(call, shared);
}

template <class Ty, bool kGeneral>
__global__ void __launch_bounds__(kMaxThreads, 1) fdiv_grid_kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
  by_grid<FdivOp<Ty, kGeneral>>(call, shared);
}

// ---- the combinations that are compiled: 12 per schedule

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
