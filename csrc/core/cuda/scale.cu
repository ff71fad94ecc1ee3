// The backward of every loss on CUDA tensors: its kernels and their launch.
#include "core/cuda/elementwise.cuh"
#include "core/cuda/scale.h"

namespace fdkernels::cuda {

namespace {

// In place with a factor of 1, there is nothing to store.
template <class Stored, class Arithmetic>
struct ScaleMath {
  using T = Arithmetic;
  static constexpr int kVector = 16 / sizeof(Stored), kWidth = kVector, kHeld = 1;

  const Scale& scale;
  const int64_t at_run;  // the run's first element of this share
  T factor;

  __device__ ScaleMath(const Scale& call, int64_t run, const Part& part)
      : scale(call),
        at_run(run * call.elements + part.begin),
        factor(static_cast<T>(real_at(call.upstream, run * call.upstream_stride))) {
    if (scale.unscale != nullptr) factor *= static_cast<T>(scale.unscale[run]);
  }

  __device__ bool stores() const {
    return factor != 1 || scale.out != scale.gradient;
  }
  __device__ static bool together() {
    return true;
  }
  __device__ static bool stores_vectors() {
    return true;
  }

  template <int W>
  __device__ void recompute(int at, T (&values)[W]) const {
    const Stored* from = static_cast<const Stored*>(scale.gradient) + at_run + at;
    if constexpr (W == 1) {
      values[0] = static_cast<T>(number(*from));
    } else {
      // Not through the read-only cache: out may be the gradient.
      const Words words = *reinterpret_cast<const Words*>(from);
      widen<Stored>(words, scale.dtype, values);
    }
  }

  template <int W>
  __device__ void store(int at, T (&values)[W]) const {
#pragma unroll
    for (int n = 0; n < W; ++n) values[n] *= factor;
    write<Stored>(scale.out, scale.dtype, at_run + at, values);
  }
};

// out = upstream * unscale * gradient, for the whole batch (one run) or per sample. Reads and writes the gradient once.
template <class Stored, class T>
__global__ void __launch_bounds__(kMaxThreads) scale_kernel(const __grid_constant__ Scale scale, Runs runs) {
  by_elements<ScaleMath<Stored, T>>(scale, runs);
}

const Kernels loaded{scale_kernel<float, float>, scale_kernel<double, double>, scale_kernel<Bf16, float>,
                     scale_kernel<Half, float>};

}  // namespace

void launch_scale(const Scale& scale, int multiprocessors, void* stream) {
  const auto start = [&](auto* kernel) {
    launch_elements("scale_kernel", kernel, scale, 16 / size_of(scale.dtype), multiprocessors, stream);
  };
  switch (scale.dtype) {
    case DType::f32:
      return start(scale_kernel<float, float>);
    case DType::f64:
      return start(scale_kernel<double, double>);
    case DType::bf16:
      return start(scale_kernel<Bf16, float>);
    case DType::f16:
      return start(scale_kernel<Half, float>);
  }
}

}  // namespace fdkernels::cuda
