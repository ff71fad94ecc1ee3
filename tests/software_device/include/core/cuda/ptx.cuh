// Stand-in for csrc/core/cuda/ptx.cuh.
#pragma once

#include <cstdint>

#include "software_device.h"

namespace fdkernels::cuda {

inline void store_vector(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[] = {a, b, c, d};
  ::software::store(to, words, sizeof(words));
}

inline void store_vector(void* to, uint32_t a, uint32_t b) {
  const uint32_t words[] = {a, b};
  ::software::store(to, words, sizeof(words));
}

inline void barrier_sync(int barrier, int threads, ::software::Site site = ::software::Site::current()) {
  ::software::sync_named(barrier, threads, true, site);
}

inline void barrier_arrive(int barrier, int threads, ::software::Site site = ::software::Site::current()) {
  ::software::sync_named(barrier, threads, false, site);
}

inline void prefetch_to_cache(uintptr_t from, unsigned bytes) {
  ::software::check_prefetch(from, bytes);
}

}  // namespace fdkernels::cuda
