// Only the flagship's float32 kernels, in place of fdiv/cuda/cluster.cu and grid.cu: a changed copy of the sources then
// compiles in seconds.
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
