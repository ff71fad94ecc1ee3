// The cluster schedule's kernels.
#include "fdiv/cuda/kernel.cuh"

namespace fdkernels::cuda {

FdivKernel cluster_kernel(Loads loads, bool general) {
  FDK_KERNEL_TABLE(fdiv_cluster_kernel)
}

namespace {

const ClusterKernel asked{reinterpret_cast<const void*>(cluster_kernel(Loads::bf16, false))};

}  // namespace

}  // namespace fdkernels::cuda
