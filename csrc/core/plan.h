// What a plan is asked, what it says, and what the CUDA kernels allow it. csrc/core/planning.h makes plans.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fdkernels {

// Sizes of clusters that are considered: 1, 2, 4, 8, 16.
constexpr int kClusterSizes = 5;

struct DeviceLimits {
  int capability;  // 10 major + minor
  int multiprocessors;
  int64_t shared_per_block;            // bytes that a block may ask for, the opt-in limit
  int64_t shared_per_multiprocessor;   // bytes, 1 KB of which each block takes for itself
  int64_t cache;                       // bytes of L2
  double bandwidth;                    // of memory, bytes/s
  int active_clusters[kClusterSizes];  // resident at a time, one block a multiprocessor; 0: cannot be scheduled
};

struct CallShape {
  int64_t batch = 0, elements = 0;
  int vector = 8;        // elements of a 16-byte access of the widest stored type
  int arithmetic = 4;    // bytes of an element's direction on chip
  bool general = false;  // beyond x, tau and f: x_t, guidance, tables, a mask, or odd mixes of types
  int read = 6;          // bytes of inputs an element
  int reread = 4;        // those that a gradient needs again where its direction was not held
  int written = 2;       // bytes of gradient an element
  // The same where figures and a gradient are asked for: what the choice goes by, so that neither changes a bit of the
  // loss.
  int most_read = 6, most_written = 2;
  int64_t heads = 0;         // of the logits; 0 where a call has none
  int64_t bins = 0;          // of the normalizer
  int64_t mask_entries = 0;  // to count before the first gradient can be stored
};

enum class Schedule { cluster, grid };

struct Plan {
  Schedule schedule = Schedule::cluster;
  int team = 1;               // blocks that share a sample: a cluster, or a part of the grid
  int teams = 1;              // that run side by side
  int threads = 128;          // a block
  int weighing = 0;           // of them, that weigh the batch while the others load, and have no elements
  int64_t share = 0;          // elements of a sample that a block takes
  int held = 0;               // vectors of them that it holds on chip
  int buffers = 1;            // samples that it holds at a time
  int64_t shared_bytes = 0;   // dynamic
  int64_t again = 0;          // elements of a sample that its gradient has read a second time
  int64_t prefetched = 0;     // elements of each share of the next sample that go to L2 while sums are awaited
  bool weigh_first = false;   // launches of their own compute h
  bool count_first = false;   // another counts a mask's entries
  bool wide_offsets = false;  // an element's index in its sample needs more than 32 bits; in a share it never does
  double bytes = 0;           // between memory and chip
  double seconds = 0;         // predicted

  int64_t blocks() const {
    return static_cast<int64_t>(team) * teams;
  }
  // Of all buffers: where the weights' shared memory begins.
  int64_t held_bytes(const CallShape& call) const {
    return static_cast<int64_t>(buffers) * held * call.vector * call.arithmetic;
  }
};

// Which schedules may be taken: all by default; a test or an experiment narrows them ("cluster", "cluster:4",
// "grid:2").
struct Allowed {
  bool cluster = true, grid = true;
  int size = 0;   // of the cluster; 0: any
  int teams = 0;  // of the grid, or as many as it can have; 0: any
};

// Weights that every block may compute for itself; more are always computed once, ahead.
constexpr int64_t kWeighedSamples = 1024, kWeighedLogits = 4096, kWeighedBins = 128;
// Samples that are weighed ahead by one block; more, of no more bins than above, by several in three launches.
constexpr int64_t kWeighedByOne = 256;
constexpr int kWeighManyThreads = 128, kWeighManyBlocks = 128;
// Mask entries that every block may count for itself.
constexpr int64_t kCountedEntries = 16384;
// Teams of a grid, at most: a ticket has counters for as many.
constexpr int kMaxTeams = 64;
// Dynamic shared memory is what a device allows less the kernels' own.
constexpr int64_t kStaticShared = 3 * 1024;

constexpr int kMaxThreads = 512, kMaxWeighing = 64;  // of a block, with elements and without
// Of the cluster schedule's kernels, at most; `make check-kernels` holds them to it.
constexpr int kRegistersAThread = 96, kRegistersAThreadGeneral = 128;
// Threads a block where samples wait for their turn: three blocks of them fit a multiprocessor's registers, so that
// some load while others wait for their sums.
constexpr int kCrowdedThreads = 192, kMostCrowded = 3;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Threads of a cluster's block, at most. A grid's has kMaxThreads, those that weigh among them: it has a multiprocessor
// for itself, and with 128 registers a thread six loads are on their way where with 96 there were three.
constexpr int most_threads(bool general) {
  return general ? kMaxThreads : kMaxThreads + kMaxWeighing;
}

// Blocks that weigh a batch ahead. A multiprocessor is busy with float64 for long where its rate is low.
constexpr int64_t weighing_blocks(int64_t batch, int64_t bins) {
  if (batch <= kWeighedByOne || bins > kWeighedBins) return 1;
  return std::min<int64_t>(ceil_div(batch, kWeighManyThreads), kWeighManyBlocks);
}

}  // namespace fdkernels
