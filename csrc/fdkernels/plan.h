// How the CUDA backend spreads a forward call over the chip: a pure function of the call's shape and the device's
// limits, which the launcher obeys.
//
//   cluster   one thread-block cluster (a block, where size 1 is best) holds a sample on chip between the sums over it
//             and the store of its gradient; the sums meet in distributed shared memory
//   grid      all blocks are resident and hold one sample together; the sums meet in global memory, and each block
//   loads
//             its share of the next sample before it waits for them. What a share cannot hold is read again.
//
// Both are one launch, in which clusters, or the grid, pass from sample to sample. Either reads every input once as
// long as a sample fits; `grid` takes any sample. The plan is the cheaper of all that fit, in a model of three times:
// bytes over bandwidth, waiting for a team's sums, and starting.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "fdiv.h"

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
  int team = 1;               // blocks that share a sample: the cluster, or the grid
  int teams = 1;              // that run side by side
  int threads = 128;          // a block
  int weighing = 0;           // of them, that weigh the batch while the others load, and have no elements
  int64_t share = 0;          // elements of a sample that a block takes
  int held = 0;               // vectors of them that it holds on chip
  int buffers = 1;            // samples that it holds at a time
  int64_t shared_bytes = 0;   // dynamic
  int64_t again = 0;          // elements of a sample that its gradient has read a second time
  int64_t prefetched = 0;     // elements of each share of the next sample that go to L2 while sums are awaited
  bool weigh_first = false;   // a launch of its own computes h
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
  int launches() const {
    return 1 + weigh_first + count_first;
  }
};

// Which schedules may be taken: all by default; a test or an experiment narrows them ("grid", "cluster", "cluster:4").
struct Allowed {
  bool cluster = true, grid = true;
  int size = 0;  // of the cluster; 0: any
};

// Weights that every block may compute for itself; more are always computed once, by a launch of their own.
constexpr int64_t kWeighedSamples = 1024, kWeighedLogits = 4096, kWeighedBins = 128;
// Mask entries that every block may count for itself.
constexpr int64_t kCountedEntries = 16384;
// Dynamic shared memory is what a device allows less the kernels' own.
constexpr int64_t kStaticShared = 3 * 1024;

constexpr int kMaxThreads = 512, kMaxWeighing = 64;  // of a block, with elements and without
// Of the cluster schedule's kernels, at most; `make check-kernels` holds them to it.
constexpr int kRegistersAThread = 96, kRegistersAThreadGeneral = 128;
// Threads a block where samples wait for their turn: three blocks of them fit a multiprocessor's registers, so that
// some load while others wait for their sums.
constexpr int kCrowdedThreads = 192;

// The model's constants, in seconds, from an H100 (docs/decisions.md, "First run on a GPU").
constexpr double kStart = 10e-6;         // launch, weights, first bytes, the last block's report
constexpr double kClusterWait = 1.5e-6;  // block sums, cluster barrier, coefficient; half of it for one block
constexpr double kGridWait = 5e-6;       // the same through global memory
constexpr double kOverlapped = 2e-6;     // what is left of a wait while another block's sample moves
constexpr double kAhead = 2.5e-6;        // what is left of the grid's while it loads the next sample
constexpr double kFasterAlone = 3;       // a multiprocessor's bandwidth over its share of the device's
constexpr double kReached = 0.9;         // of the datasheet's bandwidth, as a copy does

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t weight_bytes(const CallShape& call, bool weigh_first) {
  if (call.heads == 0 || weigh_first) return 0;
  return 16 * call.batch + 8 * call.bins + 4 * ceil_div(call.batch, 2) * 2;
}

// Warps that a multiprocessor's registers hold; each of its quarters has 16,384 and takes whole warps.
constexpr int warps_by_registers(bool general) {
  return 4 * (16384 / (32 * (general ? kRegistersAThreadGeneral : kRegistersAThread)));
}

// Threads of a block, at most.
constexpr int most_threads(bool general) {
  return general ? kMaxThreads : kMaxThreads + kMaxWeighing;
}

// One warp weighs few samples. Of many, each thread of two takes several.
inline int weighing_threads(const CallShape& call, bool weigh_first) {
  if (call.heads == 0 || weigh_first) return 0;
  return call.batch <= 32 ? 32 : kMaxWeighing;
}

// Those with elements. most: fewer a block where several blocks side by side keep a multiprocessor busier than one that
// waits.
inline int threads_for(int64_t vectors, bool general, int most) {
  // Two vectors a thread keep its loads in flight together; below a warp's worth of those, four warps share the rest.
  const int64_t wanted = ceil_div(ceil_div(vectors, general ? 1 : 2), 32) * 32;
  return static_cast<int>(std::clamp<int64_t>(wanted, 128, std::min(most, kMaxThreads)));
}

// What moves between memory and chip. `again`: as in Plan.
inline double bytes_moved(const CallShape& call, const DeviceLimits& device, int64_t again) {
  const double batch = static_cast<double>(call.batch);
  // Of a sample's second read, half of the cache is counted on.
  const double twice =
      std::max(0.0, static_cast<double>(again) * call.reread - 0.5 * static_cast<double>(device.cache));
  return batch * (static_cast<double>(call.elements) * (call.read + call.written) + twice);
}

// As much of every block's next share as a quarter of the cache holds.
inline int64_t prefetched(const CallShape& call, const DeviceLimits& device, const Plan& plan) {
  if (device.capability < 90) return 0;
  const int64_t each = device.cache / 4 / (plan.blocks() * call.read);
  return std::min(plan.share, each / call.vector * call.vector);
}

// Whether every block computing the weights for itself is out of the question.
inline bool must_weigh_first(const CallShape& call) {
  return call.heads > 0 &&
         (call.batch > kWeighedSamples || call.batch * call.heads > kWeighedLogits || call.bins > kWeighedBins);
}

// What precedes a schedule, and how long that takes.
inline Plan launches_before(const CallShape& call, bool weigh_first) {
  Plan plan;
  plan.weigh_first = weigh_first;
  plan.weighing = weighing_threads(call, weigh_first);
  plan.count_first = call.mask_entries > kCountedEntries;
  plan.wide_offsets = call.elements > INT32_MAX;
  plan.seconds = (plan.launches() - 1) * kStart;
  return plan;
}

// False where a sample does not fit, or the device cannot schedule this size.
inline bool plan_cluster(const CallShape& call, const DeviceLimits& device, bool weigh_first, int index, Plan* found) {
  const int size = 1 << index;
  const int active = device.active_clusters[index];
  if (active == 0) return false;
  Plan plan = launches_before(call, weigh_first);
  const int64_t vectors = ceil_div(call.elements, call.vector);
  const int64_t share = ceil_div(vectors, size);
  plan.schedule = Schedule::cluster;
  plan.team = size;
  plan.share = share * call.vector;
  plan.shared_bytes = plan.share * call.arithmetic + weight_bytes(call, weigh_first);
  if (plan.shared_bytes + kStaticShared > device.shared_per_block) return false;
  plan.held = static_cast<int>(share);  // all of it
  // Blocks a multiprocessor, by shared memory and by registers.
  const int64_t by_shared = device.shared_per_multiprocessor / (plan.shared_bytes + kStaticShared + 1024);
  const int most = call.batch > active && by_shared > 1 ? kCrowdedThreads : most_threads(call.general);
  plan.threads = threads_for(share, call.general, most - plan.weighing) + plan.weighing;
  const int64_t by_registers = warps_by_registers(call.general) / (plan.threads / 32);
  const int64_t resident = std::max<int64_t>(1, std::min(by_shared, by_registers));
  plan.teams = static_cast<int>(std::min(call.batch, active * resident));
  plan.bytes = bytes_moved(call, device, 0);

  const double rounds = std::ceil(static_cast<double>(call.batch) / static_cast<double>(active * resident));
  const double busy = static_cast<double>(std::min<int64_t>(call.batch, active)) * size;
  const double moved = std::min(1.0, kFasterAlone * busy / device.multiprocessors) * kReached * device.bandwidth;
  const double wait = size == 1 ? kClusterWait / 2 : kClusterWait;
  plan.seconds += kStart + plan.bytes / moved + wait + (rounds - 1) * (resident > 1 ? kOverlapped : wait);
  plan.prefetched = prefetched(call, device, plan);
  *found = plan;
  return true;
}

// False where even a vector of a share does not fit, or the kernel's counts of elements and arrivals would overflow.
inline bool plan_grid(const CallShape& call, const DeviceLimits& device, bool weigh_first, Plan* found) {
  Plan plan = launches_before(call, weigh_first);
  const int64_t vectors = ceil_div(call.elements, call.vector);
  const int64_t share = ceil_div(vectors, device.multiprocessors);
  plan.schedule = Schedule::grid;
  plan.team = static_cast<int>(ceil_div(vectors, share));
  plan.share = share * call.vector;
  if (plan.share > INT32_MAX || ceil_div(call.batch, 2) > UINT32_MAX / plan.team) return false;
  const int most = most_threads(call.general) - plan.weighing;
  plan.threads = threads_for(share, call.general, most) + plan.weighing;
  const int64_t room = device.shared_per_block - kStaticShared - weight_bytes(call, weigh_first);
  const int64_t bytes_a_vector = static_cast<int64_t>(call.vector) * call.arithmetic;
  if (room < bytes_a_vector) return false;
  plan.buffers = call.batch > 1 && 2 * share * bytes_a_vector <= room ? 2 : 1;
  plan.held = static_cast<int>(std::min(share, room / bytes_a_vector));
  plan.shared_bytes = plan.held_bytes(call) + weight_bytes(call, weigh_first);
  const int64_t last = vectors - (plan.team - 1) * share;  // the share of the last block, which may be smaller
  if (call.written > 0 && plan.held < share) {
    plan.again = ((plan.team - 1) * (share - plan.held) + std::max<int64_t>(0, last - plan.held)) * call.vector;
  }
  plan.bytes = bytes_moved(call, device, plan.again);

  const double moved = std::min(1.0, kFasterAlone * plan.team / device.multiprocessors) * kReached * device.bandwidth;
  const double wait = plan.buffers == 2 ? kAhead : kGridWait;
  plan.seconds += kStart + plan.bytes / moved + kGridWait + static_cast<double>(call.batch - 1) * wait;
  plan.prefetched = prefetched(call, device, plan);
  *found = plan;
  return true;
}

// Calls use(plan) with each that is allowed and can run: clusters by their size, then the grid. Weights are computed
// first where they have to be, and where the shared memory that this leaves to samples is worth a launch.
template <class Use>
inline void for_candidates(const CallShape& call, const DeviceLimits& device, const Allowed& allowed, const Use& use) {
  const auto consider = [&](const auto& make) {
    Plan plan, other;
    bool found = !must_weigh_first(call) && make(false, &plan);
    if (call.heads > 0 && make(true, &other) && (!found || other.seconds < plan.seconds)) {
      plan = other;
      found = true;
    }
    if (found) use(plan);
  };
  for (int index = 0; allowed.cluster && index < kClusterSizes; ++index) {
    if (allowed.size != 0 && allowed.size != 1 << index) continue;
    consider([&](bool weigh_first, Plan* plan) { return plan_cluster(call, device, weigh_first, index, plan); });
  }
  if (allowed.grid) {
    consider([&](bool weigh_first, Plan* plan) { return plan_grid(call, device, weigh_first, plan); });
  }
}

// Throws std::invalid_argument where `allowed` leaves nothing that can run.
inline Plan plan(const CallShape& call, const DeviceLimits& device, const Allowed& allowed = {}) {
  CallShape most = call;
  most.read = call.most_read;
  most.written = call.most_written;
  Plan best;
  bool found = false;
  for_candidates(most, device, allowed, [&](const Plan& candidate) {
    if (!found || candidate.seconds < best.seconds) best = candidate;
    found = true;
  });
  if (!found) throw std::invalid_argument("no allowed schedule can hold this sample on this device");
  if (best.schedule == Schedule::grid) {
    plan_grid(call, device, best.weigh_first, &best);
  } else {
    plan_cluster(call, device, best.weigh_first, std::countr_zero(static_cast<unsigned>(best.team)), &best);
  }
  return best;
}

// "" (all), "cluster", "cluster:8", "grid"; false for anything else.
inline bool parse_allowed(const std::string& text, Allowed* allowed) {
  *allowed = {};
  if (text.empty() || text == "auto") return true;
  if (text == "grid") {
    allowed->cluster = false;
    return true;
  }
  if (text.rfind("cluster", 0) != 0) return false;
  allowed->grid = false;
  if (text == "cluster") return true;
  for (int index = 0; index < kClusterSizes; ++index) {
    if (text == "cluster:" + std::to_string(1 << index)) {
      allowed->size = 1 << index;
      return true;
    }
  }
  return false;
}

// Blocks, and elements of a run that each takes, of a backward over `runs` runs. As few as keep the device busy, since
// with an upstream of 1 each of them only reads that.
struct ScalePlan {
  int64_t blocks_a_run, vectors_a_block;
  int threads;
};

inline ScalePlan plan_scale(int64_t runs, int64_t elements, int vector, int multiprocessors) {
  constexpr int kThreads = 256, kVectorsAThread = 4;
  const int64_t vectors = ceil_div(elements, vector);
  const int64_t most = std::max<int64_t>(1, ceil_div(8 * static_cast<int64_t>(multiprocessors), runs));
  const int64_t blocks = std::clamp<int64_t>(ceil_div(vectors, kThreads * kVectorsAThread), 1, most);
  return {blocks, ceil_div(vectors, blocks), kThreads};
}

}  // namespace fdkernels
