// The kernels of the op noising: each input is read once and each result written once.
#include "core/cuda/elementwise.cuh"
#include "noising/cuda/launch.h"

namespace fdkernels::cuda {

namespace {

template <class Ty>
struct NoisingMath {
  using T = typename Ty::T;
  using Stored = typename Ty::Student;
  using StoredNoise = typename Ty::Prediction;
  static constexpr int kVector = fdkernels::kVector<Ty>, kWidth = kVector, kHeld = 1;

  const Noising& p;
  const int64_t b;
  const Part& part;
  uint64_t seed = 0;
  Coefficients<T> k;
  int64_t end = 0;  // the end of the run of elements that have these terms, in the sample

  __device__ NoisingMath(const NoisingCall& call, int64_t sample, const Part& share)
      : p(call.p), b(sample), part(share) {
    if (p.seed != nullptr) seed = static_cast<uint64_t>(*p.seed);
  }

  __device__ static bool stores() {
    return true;
  }
  __device__ static bool stores_vectors() {
    return true;
  }
  // Numbers are drawn four at a time.
  __device__ bool together() const {
    return (p.seed == nullptr || p.elements % 4 == 0) && (p.alpha.entries == 1 || p.alpha.inner % kWidth == 0) &&
           (p.sigma.entries == 1 || p.sigma.inner % kWidth == 0);
  }

  // A thread takes its elements in ascending order.
  __device__ void look_up(int64_t i) {
    end = i + same_terms(p, i, part.end - i);
    k = split<T>(terms_at(p, b, i));
  }

  template <int W>
  __device__ void recompute(int at, T (&values)[W]) {
    const int64_t i = part.begin + at, to = b * p.elements + i;
    const Words raw_x = read_vector<Stored, W>(p.x, b, i);
    Words raw_noise{};
    if (p.noise.data != nullptr) raw_noise = read_vector<StoredNoise, W>(p.noise, b, i);
    if (i >= end) look_up(i);
    T x[W], noise[W];
    widen<Stored>(raw_x, p.x.dtype, x);
    if (p.seed != nullptr) {
      normals<W>(seed, static_cast<uint64_t>(to), noise);
#pragma unroll
      for (int n = 0; n < W; ++n) noise[n] = as_stored<Stored>(noise[n], p.x.dtype);
      if (p.drawn != nullptr) write<Stored>(p.drawn, p.x.dtype, to, noise);
    } else {
      widen<StoredNoise>(raw_noise, p.noise.dtype, noise);
    }
#pragma unroll
    for (int n = 0; n < W; ++n) values[n] = affine(x[n], noise[n], k);
  }

  template <int W>
  __device__ void store(int at, T (&values)[W]) const {
    write<Stored>(p.y, p.x.dtype, b * p.elements + part.begin + at, values);
  }
};

template <class Ty>
__global__ void __launch_bounds__(kElementThreads, 2)
    noising_kernel(const __grid_constant__ NoisingCall call, Runs runs) {
  by_elements<NoisingMath<Ty>>(call, runs, blockIdx.x);
}

const Kernels loaded{noising_kernel<One<Bf16, float>>,    noising_kernel<One<Half, float>>,
                     noising_kernel<One<float, float>>,   noising_kernel<One<double, double>>,
                     noising_kernel<One<AnyType, float>>, noising_kernel<One<AnyType, double>>};

// Calls use(Ty{}) with the types of the call's kernel.
template <class Use>
auto with_types(const Noising& p, const Use& use) {
  return with_one_type(p.x.dtype, p.noise.data != nullptr && p.noise.dtype != p.x.dtype, p.is_wide(), use);
}

}  // namespace

int noising_vector(const Noising& p) {
  return with_types(p, [](auto types) { return kVector<decltype(types)>; });
}

void launch_noising(const NoisingCall& call, int multiprocessors, void* stream) {
  with_types(call.p, [&](auto types) {
    using Ty = decltype(types);
    launch_elements("noising_kernel", noising_kernel<Ty>, call, kVector<Ty>, multiprocessors, stream);
  });
}

}  // namespace fdkernels::cuda
