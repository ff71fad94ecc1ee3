// The cluster schedule's kernels.
#include "fdiv/cuda/kernel.cuh"

namespace fdkernels::cuda {

FdivKernel cluster_kernel(Loads loads, bool general) {
  FDK_KERNEL_TABLE(fdiv_cluster_kernel)
}

}  // namespace fdkernels::cuda
