// A plan says how the CUDA backend spreads one forward call over the chip. This file has the planner's inputs
// (DeviceLimits, Workload), its result (Plan), and the limits that the kernels set. core/planning.h makes plans.
//
// Words that the kernels use too:
//   team      the blocks that share a sample: a thread-block cluster, or a part of a cooperative grid
//   share     the elements of a sample that one block of its team takes
//   held      kept in a block's shared memory from a sample's sums to the store of its gradient
//   weighing  computing the batch's weights h from the logits
#pragma once

#include <algorithm>
#include <cstdint>

namespace fdkernels {

// The number of cluster sizes that a plan considers: 1, 2, 4, 8, 16 blocks.
constexpr int kClusterSizes = 5;

struct DeviceLimits {
  int capability;  // 10 major + minor
  int multiprocessors;
  int64_t shared_per_block;            // bytes that a block may ask for, the opt-in limit
  int64_t shared_per_multiprocessor;   // bytes, of which CUDA takes 1 KB for each block
  int64_t cache;                       // bytes of L2
  double bandwidth;                    // of memory, bytes/s
  int active_clusters[kClusterSizes];  // that can be resident at one block per multiprocessor; 0: cannot be scheduled
};

// A call (fdkernels/call_shape.py) as the plan sees it: sizes, and bytes per element.
struct Workload {
  int64_t batch = 0, elements = 0;
  int vector = 8;        // elements in 16 bytes of the widest stored type
  int arithmetic = 4;    // bytes per held element
  bool general = false;  // has x_t, guidance, tables, a mask or an uncommon mix of types, beside x, tau and f
  int read = 6;          // input bytes per element
  int reread = 4;        // input bytes per element that is not held, which the gradient reads again
  int written = 2;       // gradient bytes per element
  // `read` and `written` of the same call with statistics and a gradient. The schedule is chosen by these: asking for
  // statistics or a gradient must not change a bit of the loss.
  int most_read = 6, most_written = 2;
  int64_t heads = 0;         // of the logits; 0: the call has none
  int64_t bins = 0;          // of the normalizer; 0: the call has none
  int64_t mask_entries = 0;  // to count before the first gradient can be stored
};

enum class Schedule { cluster, grid };

struct Plan {
  Schedule schedule = Schedule::cluster;
  int team = 1;              // blocks per team
  int teams = 1;             // teams that run side by side
  int threads = 128;         // per block
  int weighing = 0;          // threads of a block that weigh the batch while the others load; they take no elements
  int64_t share = 0;         // elements of a sample per block
  int held = 0;              // vectors of its share that a block holds
  int buffers = 1;           // samples that a block holds at a time
  int64_t shared_bytes = 0;  // dynamic shared memory per block
  int64_t again = 0;         // elements per sample whose inputs the gradient reads a second time
  int64_t prefetched = 0;    // elements of each share of the next sample that are prefetched to L2
  bool weigh_first = false;  // separate launches compute h before the main one
  bool count_first = false;  // a separate launch counts the mask's entries
  double bytes = 0;          // between memory and chip
  double seconds = 0;        // predicted

  int64_t blocks() const {
    return static_cast<int64_t>(team) * teams;
  }
  // Bytes of all buffers. The weights' shared memory follows them.
  int64_t held_bytes(const Workload& call) const {
    return static_cast<int64_t>(buffers) * held * call.vector * call.arithmetic;
  }
};

// The schedules that a plan may take: all by default. A test or an experiment narrows them ("cluster", "cluster:4",
// "grid:2").
struct Allowed {
  bool cluster = true, grid = true;
  int size = 0;   // blocks of a cluster; 0: any
  int teams = 0;  // of a grid, fewer if it cannot have as many; 0: any
};

// Up to these sizes every block may weigh the batch itself. Beyond any of them, launches before the main one do.
constexpr int64_t kWeighedSamples = 1024, kWeighedLogits = 4096, kWeighedBins = 128;
// A separate launch weighs up to this many samples with one block. More samples, with at most kWeighedBins bins, take
// several blocks and three launches.
constexpr int64_t kWeighedByOne = 256;
constexpr int kWeighManyThreads = 128, kWeighManyBlocks = 128;
// Up to this many mask entries, every block counts them itself.
constexpr int64_t kCountedEntries = 16384;
// The most teams of a grid: a ticket (core/cuda/device.h) has counters for this many.
constexpr int kMaxTeams = 64;
// Bytes of a block's shared memory that plans leave to the kernels' static variables.
constexpr int64_t kStaticShared = 3 * 1024;

constexpr int kMaxThreads = 512, kMaxWeighing = 64;  // most threads of a block with elements; most that weigh
// The most registers per thread: of plain cluster kernels, and of general and grid kernels. `make check-kernels` checks
// the compiled kernels.
constexpr int kRegistersAThread = 96, kRegistersAThreadGeneral = 128;
// Where samples outnumber the resident clusters, blocks may have this many threads: a multiprocessor's registers hold
// three such blocks (two of general kernels), of which some load while others wait for their sums.
constexpr int kCrowdedThreads = 192, kMostCrowded = 3;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The most threads of a cluster's block, with those that weigh. A grid's block has at most kMaxThreads, with those that
// weigh: it has a multiprocessor to itself, and 128 registers per thread keep six loads in flight, 96 only three.
constexpr int most_threads(bool general) {
  return general ? kMaxThreads : kMaxThreads + kMaxWeighing;
}

// Blocks of a separate launch that weighs a batch. Several, since one multiprocessor takes long where its float64 rate
// is low.
constexpr int64_t weighing_blocks(int64_t batch, int64_t bins) {
  if (batch <= kWeighedByOne || bins > kWeighedBins) return 1;
  return std::min<int64_t>(ceil_div(batch, kWeighManyThreads), kWeighManyBlocks);
}

}  // namespace fdkernels
