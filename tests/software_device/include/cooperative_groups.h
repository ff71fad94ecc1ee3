// Stand-in for CUDA's header: clusters.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  static unsigned num_blocks() {
    return ::software::cluster_blocks();
  }
  static unsigned block_rank() {
    return ::software::cluster_rank();
  }
  static void barrier_arrive(::software::Site site = ::software::Site::current()) {
    ::software::cluster_arrive(site);
  }
  static void barrier_wait(::software::Site site = ::software::Site::current()) {
    ::software::cluster_wait(site);
  }
  static void sync(::software::Site site = ::software::Site::current()) {
    barrier_arrive(site);
    barrier_wait(site);
  }
  template <class T>
  static T* map_shared_rank(T* address, int rank) {
    return static_cast<T*>(::software::map_shared(address, static_cast<unsigned>(rank)));
  }
};

inline cluster_group this_cluster() {
  return {};
}

}  // namespace cooperative_groups
