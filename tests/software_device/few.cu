// The flagship's kernels of float32 alone, in place of fdiv_cluster.cu and fdiv_grid.cu: a changed copy of the sources
// is compiled in seconds.
#include "fdiv/cuda/kernel.cuh"

namespace fdkernels::cuda {

using Few = Types<float, float, float>;

FdivKernel cluster_kernel(Loads, bool general) {
  return general ? fdiv_cluster_kernel<Few, true> : fdiv_cluster_kernel<Few, false>;
}

FdivKernel grid_kernel(Loads, bool general) {
  return general ? fdiv_grid_kernel<Few, true> : fdiv_grid_kernel<Few, false>;
}

}  // namespace fdkernels::cuda
