// What a thread of the software device may do, called by the stand-ins of CUDA's headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace software {

using Site = std::source_location;  // where in a kernel

enum class Access : uint8_t { read, constant_read, write, atomic_read, atomic_write };
enum class Order : uint8_t { relaxed, acquire, release, acq_rel };
enum class Vote : uint8_t { none, all, count };
enum class Collective : uint8_t { sync, shuffle, vote };

// Indices and sizes of the running thread. They are constant for its whole life, so a compiler may remember them.
__attribute__((const)) unsigned thread_index();
__attribute__((const)) unsigned block_index();
__attribute__((const)) unsigned block_threads();
__attribute__((const)) unsigned grid_blocks();
__attribute__((const)) unsigned cluster_blocks();
__attribute__((const)) unsigned cluster_rank();

// All threads of the block meet, at one line of source. Returns how many voted; for Vote::all, whether all did.
int sync_block(int vote, Vote kind, Site site);
// A barrier with a number of its own, for some warps of the block.
void sync_named(int barrier, int threads, bool waits, Site site);
// The lanes of `mask` meet. Returns the value of lane `source`; for a vote, a bit for each lane that brought 1.
uint64_t warp_collective(unsigned mask, uint64_t value, unsigned source, Collective kind, Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
// The same variable of another block of the cluster.
void* map_shared(const void* address, unsigned rank);

// Checks one access, aligned to its size, and copies `bytes` from the device's memory, or to it.
void load(void* to, const void* from, size_t bytes, Access how);
void store(void* to, const void* from, size_t bytes);
// Checks one access of the running thread, and faults if it is not allowed. The caller moves the bytes.
void access(const void* address, size_t bytes, Access how);
void check_prefetch(uintptr_t from, size_t bytes);

void fence();
// Lets others run. When no thread is ready, sleepers wake if something has been written.
void sleep(Site site);

// An atomic load. A thread that finds the same value again and again sleeps.
void peek(void* to, const void* from, size_t bytes, Order order, bool device_scope, Site site);
// An atomic store.
void poke(void* to, const void* from, size_t bytes, Order order, bool device_scope);
// An atomic read and write: synchronizes and takes the old value; then stores the new one.
void begin_atomic(void* old, const void* address, size_t bytes, Order order, bool device_scope);
void end_atomic(void* address, const void* now, size_t bytes);

// threadIdx and the like: only x.
template <unsigned (*kValue)()>
struct Index {
  struct {
    operator unsigned() const {
      return kValue();
    }
  } x;
};

}  // namespace software
