// The cluster schedule's kernels.
#include "fdiv.cuh"

namespace fdkernels::cuda {

const void* cluster_kernel(Loads loads, bool general) {
  const auto pick = [general](auto* plain, auto* other) {
    return reinterpret_cast<const void*>(general ? other : plain);
  };
  FDK_KERNEL_TABLE(fdiv_cluster_kernel)
}

}  // namespace fdkernels::cuda
