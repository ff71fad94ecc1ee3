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

struct Scales {
  Scale each[kMostScaled];
  Runs runs[kMostScaled];
  int64_t blocks[kMostScaled];  // of all its runs
};

// out = upstream * unscale * gradient of each, for the whole batch (one run) or per sample. Reads and writes the
// gradients once. A block works on one of them, whose type it looks up.
__global__ void __launch_bounds__(kMaxThreads) scale_kernel(const __grid_constant__ Scales scales) {
  int64_t block = blockIdx.x;
  int n = 0;
  for (; block >= scales.blocks[n]; ++n) block -= scales.blocks[n];
  const Scale& scale = scales.each[n];
  switch (scale.dtype) {
    case DType::f32:
      return by_elements<ScaleMath<float, float>>(scale, scales.runs[n], block);
    case DType::f64:
      return by_elements<ScaleMath<double, double>>(scale, scales.runs[n], block);
    case DType::bf16:
      return by_elements<ScaleMath<Bf16, float>>(scale, scales.runs[n], block);
    case DType::f16:
      return by_elements<ScaleMath<Half, float>>(scale, scales.runs[n], block);
  }
}

const Kernels loaded{scale_kernel};

}  // namespace

void launch_scale(const std::vector<Scale>& scales, int multiprocessors, void* stream) {
  for (size_t first = 0; first < scales.size(); first += kMostScaled) {
    Scales call{};
    int64_t blocks = 0;
    for (size_t n = first; n < std::min(first + kMostScaled, scales.size()); ++n) {
      const Scale& scale = call.each[n - first] = scales[n];
      const Runs& runs = call.runs[n - first] =
          runs_of(scale.runs, scale.elements, 16 / size_of(scale.dtype), multiprocessors);
      blocks += call.blocks[n - first] = scale.runs * runs.blocks;
    }
    launch("scale_kernel", scale_kernel, blocks, kElementThreads, stream, call);
  }
}

}  // namespace fdkernels::cuda
