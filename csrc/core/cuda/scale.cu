// The backward of every loss on CUDA tensors: its kernels and their launch.
#include "core/cuda/block.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/scale.h"
#include "core/vectors.h"

namespace fdkernels::cuda {

namespace {

// out = upstream * unscale * gradient, for the whole batch (one run) or per sample. Reads and writes the gradient once.
// In place with a factor of 1, each block reads the factor and returns.
template <class Stored, class T>
__global__ void __launch_bounds__(kMaxThreads)
    scale_kernel(const __grid_constant__ Scale scale, int64_t blocks_a_run, int64_t vectors_a_block) {
  constexpr int V = 16 / sizeof(Stored);
  const int64_t run = blockIdx.x / blocks_a_run, block = blockIdx.x - run * blocks_a_run;
  T factor = static_cast<T>(real_at(scale.upstream, run * scale.upstream_stride));
  if (scale.unscale != nullptr) factor *= static_cast<T>(scale.unscale[run]);
  if (factor == 1 && scale.out == scale.gradient) return;
  const Samples gradient{scale.gradient, scale.dtype, scale.elements};
  const int64_t begin = block * vectors_a_block * V;
  const int64_t last = begin + vectors_a_block * V < scale.elements ? begin + vectors_a_block * V : scale.elements;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * V; i < last; i += static_cast<int64_t>(blockDim.x) * V) {
    if (scale.aligned && i + V <= last) {
      T values[V];
      // Not through the read-only cache: out may be the gradient.
      Words words = *reinterpret_cast<const Words*>(vector_at<Stored>(gradient, run, i));
      widen<Stored>(words, scale.dtype, values);
#pragma unroll
      for (int k = 0; k < V; ++k) values[k] *= factor;
      write<Stored>(scale.out, scale.dtype, run * scale.elements + i, values);
    } else {
      for (int64_t k = i; k < last && k < i + V; ++k) {
        const T value[1] = {static_cast<T>(number(*vector_at<Stored>(gradient, run, k))) * factor};
        write<Stored>(scale.out, scale.dtype, run * scale.elements + k, value);
      }
    }
  }
}

// Blocks per run of a backward, and vectors of a run per block. Only as many blocks as keep the device busy, since with
// an upstream of 1 each block only reads that.
struct ScalePlan {
  int64_t blocks_a_run, vectors_a_block;
  int threads;
};

ScalePlan plan_scale(int64_t runs, int64_t elements, int vector, int multiprocessors) {
  constexpr int kThreads = 256, kVectorsAThread = 4;
  const int64_t vectors = ceil_div(elements, vector);
  const int64_t most = std::max<int64_t>(1, ceil_div(8 * static_cast<int64_t>(multiprocessors), runs));
  const int64_t blocks = std::clamp<int64_t>(ceil_div(vectors, kThreads * kVectorsAThread), 1, most);
  return {blocks, ceil_div(vectors, blocks), kThreads};
}

const Kernels loaded{scale_kernel<float, float>, scale_kernel<double, double>, scale_kernel<Bf16, float>,
                     scale_kernel<Half, float>};

}  // namespace

void launch_scale(const Scale& scale, int multiprocessors, void* stream) {
  const ScalePlan plan = plan_scale(scale.runs, scale.elements, 16 / size_of(scale.dtype), multiprocessors);
  const auto start = [&](auto* kernel) {
    launch("scale_kernel", kernel, scale.runs * plan.blocks_a_run, plan.threads, stream, scale, plan.blocks_a_run,
           plan.vectors_a_block);
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
