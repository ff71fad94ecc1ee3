// The grid schedule's kernels.
#include "fdiv/cuda/kernel.cuh"

namespace fdkernels::cuda {

FdivKernel grid_kernel(Loads loads, bool general) {
  FDK_KERNEL_TABLE(fdiv_grid_kernel)
}

}  // namespace fdkernels::cuda
