// The kernels of the op denoising: each input is read once, the gradient written once, in one launch.
#include "core/cuda/elementwise.cuh"
#include "denoising/cuda/launch.h"

namespace fdkernels::cuda {

namespace {

__device__ inline Divisors divisors_of(const DenoisingCall& call) {
  double given = call.host_count;
  if (call.count.data != nullptr) {
    given = real_at(call.count, 0);
    if (given < 1) given = 1;
  }
  return fdkernels::divisors_of(call.p, given);
}

template <class Ty>
struct DenoisingMath {
  using T = typename Ty::T;
  using Stored = typename Ty::Student;
  using StoredTarget = typename Ty::Prediction;
  static constexpr int kVector = fdkernels::kVector<Ty>, kWidth = kVector, kHeld = 1;

  const Denoising& p;
  const int64_t b;
  const Part& part;
  double total = 0;  // of w d^2
  double factor;     // 2 / N, times a power of two
  Coefficients<T> k;
  double weight = 0;
  T by = 0;         // factor * weight
  int64_t end = 0;  // the end of the run of elements that share these, in the sample

  __device__ DenoisingMath(const Denoising& call, int64_t sample, const Part& share, const Divisors& divisors)
      : p(call), b(sample), part(share), factor(2 / divisors.loss * divisors.power) {}

  __device__ static bool stores_vectors() {
    return true;
  }
  __device__ bool together() const {
    const auto shared = [](const Table& table) { return table.entries == 1 || table.inner % kWidth == 0; };
    return shared(p.alpha) && shared(p.sigma) && shared(p.weight);
  }

  // A thread takes its elements in ascending order.
  __device__ void look_up(int64_t i) {
    end = i + same_entries(p, i, part.end - i);
    const DenoisingRun run = run_around(p, b, i);
    k = split<T>(run.target);
    weight = run.weight;
    by = static_cast<T>(factor * weight);
  }

  // Sets d, which store() multiplies.
  template <int W>
  __device__ void recompute(int at, T (&d)[W]) {
    const int64_t i = part.begin + at;
    const Words raw_pred = read_vector<Stored, W>(p.pred, b, i);
    const Words raw_x0 = read_vector<StoredTarget, W>(p.x0, b, i);
    const Words raw_noise = read_vector<StoredTarget, W>(p.noise, b, i);
    if (i >= end) look_up(i);
    T x0[W], noise[W];
    widen<Stored>(raw_pred, p.pred.dtype, d);
    widen<StoredTarget>(raw_x0, p.x0.dtype, x0);
    widen<StoredTarget>(raw_noise, p.noise.dtype, noise);
    double squares = 0;
#pragma unroll
    for (int n = 0; n < W; ++n) {
      d[n] = difference_of(d[n], x0[n], noise[n], k);
      squares += static_cast<double>(d[n]) * static_cast<double>(d[n]);
    }
    total += weight * squares;
  }

  template <int W>
  __device__ void store(int at, T (&d)[W]) const {
    if (p.gradient == nullptr) return;
#pragma unroll
    for (int n = 0; n < W; ++n) d[n] *= by;
    write<Stored>(p.gradient, p.pred.dtype, b * p.elements + part.begin + at, d);
  }
};

__device__ inline void report(const DenoisingCall& call, int64_t b, double sum, const Divisors& divisors) {
  write_loss(call.loss, call.wide_loss, b, sum / divisors.loss);
  if (call.unscale != nullptr) call.unscale[b] = static_cast<float>(1 / divisors.power);
}

template <class Ty>
__global__ void __launch_bounds__(kElementThreads, 2)
    denoising_kernel(const __grid_constant__ DenoisingCall call, Runs runs) {
  __shared__ Scratch scratch;
  __shared__ bool drawn;
  __shared__ Divisors divisors;
  if (threadIdx.x == 0) divisors = divisors_of(call);
  __syncthreads();
  sum_by_elements(
      call, runs, call.p.reduction == Reduction::none, scratch, drawn,
      [&](int64_t b, const Part& part) { return DenoisingMath<Ty>(call.p, b, part, divisors); },
      [&](int64_t b, double sum) { report(call, b, sum, divisors); });
}

const Kernels loaded{denoising_kernel<One<Bf16, float>>,    denoising_kernel<One<Half, float>>,
                     denoising_kernel<One<float, float>>,   denoising_kernel<One<double, double>>,
                     denoising_kernel<One<AnyType, float>>, denoising_kernel<One<AnyType, double>>};

// Calls use(Ty{}) with the types of the call's kernel.
template <class Use>
auto with_types(const Denoising& p, const Use& use) {
  return with_one_type(p.pred.dtype, p.x0.dtype != p.pred.dtype || p.noise.dtype != p.pred.dtype, p.is_wide(), use);
}

}  // namespace

int denoising_vector(const Denoising& p) {
  return with_types(p, [](auto types) { return kVector<decltype(types)>; });
}

int64_t denoising_blocks(const Denoising& p, int multiprocessors) {
  return p.batch * runs_of(p.batch, p.elements, denoising_vector(p), multiprocessors).blocks;
}

void launch_denoising(const DenoisingCall& call, int multiprocessors, void* stream) {
  with_types(call.p, [&](auto types) {
    using Ty = decltype(types);
    launch_elements("denoising_kernel", denoising_kernel<Ty>, call, kVector<Ty>, multiprocessors, stream);
  });
}

}  // namespace fdkernels::cuda
