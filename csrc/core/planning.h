// Makes plans (core/plan.h): a pure function of a call's shape and a device's limits. The launcher follows the plan.
//
//   cluster   A thread-block cluster, or a single block, holds a sample on chip from its sums to the store of its
//             gradient. The blocks exchange their sums through distributed shared memory.
//   grid      All blocks are resident, in teams that each hold a sample. The blocks exchange their sums through global
//             memory. With room for two samples, a block loads its share of the next one before it waits for the sums.
//             What a share cannot hold is read again.
//
// Both take one launch, in which clusters or teams pass from sample to sample. Both read every input once as long as a
// sample fits; `grid` takes any sample. The choice is the plan with the shortest predicted time. The model adds bytes
// over bandwidth, waits for the weights and a team's sums, and the start.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/plan.h"

namespace fdkernels {

// The model's constants, in seconds, from an H100 (docs/decisions.md, "Second run on a GPU").
constexpr double kStart = 7.5e-6;         // launch, first bytes, the last block's report
constexpr double kWeights = 5e-6;         // from the first byte until a block has weighed a small batch
constexpr double kWeightsASample = 1e-8;  // in addition, per sample of the batch
// In addition, if blocks must start together: 0.5 us. A grid has to be better by one more microsecond, since it needs
// the whole device at once, while clusters leave room for other streams' kernels.
constexpr double kClusterStart = 0.5e-6, kGridStart = 1.5e-6;
constexpr double kClusterWait = 1e-6;  // block sums, cluster barrier, coefficient
constexpr double kGridWait = 3.5e-6;   // the same through global memory, for any number of blocks
// What each further sample of a team costs beside its bytes. During the wait for sums, memory idles (kClusterTurn,
// kGridTurn), another block of the multiprocessor moves its sample (kOverlapped), or the block itself loads the next
// one (kAhead).
constexpr double kClusterTurn = 3.5e-6, kGridTurn = 8e-6, kOverlapped = 1.5e-6, kAhead = 2.3e-6;
constexpr double kCrowded = 0.75;     // part of the bandwidth that several small blocks per multiprocessor reach
constexpr double kFasterAlone = 1.6;  // a multiprocessor's bandwidth over its share of the device's
constexpr double kReached = 0.9;      // part of the datasheet's bandwidth that a copy reaches
constexpr double kReadAgain = 2.5;    // cost of a second read of a byte (from L2 or memory) over that of a first read
constexpr double kFollowing = 4e-6;   // a small launch right behind another
constexpr double kWeigh = 0.625e-9;   // a sample's weight on one multiprocessor, if float64 ran at float32's rate

// Shared memory of a block that weighs: h and ratios, the bins' means, and each sample's bin.
inline int64_t weight_bytes(const Workload& call, bool weigh_first) {
  if (call.heads == 0 || weigh_first) return 0;
  return 16 * call.batch + 8 * call.bins + 4 * ceil_div(call.batch, 2) * 2;
}

// Warps that a multiprocessor's registers hold; each of its quarters has 16,384 registers and takes whole warps.
constexpr int warps_by_registers(bool general) {
  return 4 * (16384 / (32 * (general ? kRegistersAThreadGeneral : kRegistersAThread)));
}

// One warp weighs up to 32 samples, two warps weigh more.
inline int weighing_threads(const Workload& call, bool weigh_first) {
  if (call.heads == 0 || weigh_first) return 0;
  return call.batch <= 32 ? 32 : kMaxWeighing;
}

constexpr int weighing_launches(const Workload& call, bool weigh_first) {
  return !weigh_first ? 0 : weighing_blocks(call.batch, call.bins) == 1 ? 1 : 3;
}

constexpr int launches_of(const Workload& call, const Plan& plan) {
  return 1 + weighing_launches(call, plan.weigh_first) + plan.count_first;
}

// Seconds of float64 arithmetic for the weights of `samples` on one multiprocessor. Data-center chips run float64 at
// half of float32's rate, others at 1/64.
inline double weighing_seconds(const Workload& call, const DeviceLimits& device, int64_t samples) {
  const bool fast = device.capability == 80 || device.capability == 90 || device.capability == 100;
  return call.heads == 0 ? 0.0 : static_cast<double>(samples) * kWeigh * (fast ? 2 : 64);
}

// Threads of a block that take elements, at most `most`. With fewer per block, several blocks fit side by side and keep
// a multiprocessor busy while one of them waits.
inline int threads_for(int64_t vectors, bool general, int most) {
  // Two vectors per thread (one in general kernels): their loads are in flight together. At least four warps.
  const int64_t wanted = ceil_div(ceil_div(vectors, general ? 1 : 2), 32) * 32;
  return static_cast<int>(std::clamp<int64_t>(wanted, 128, std::min(most, kMaxThreads)));
}

// Bytes between memory and chip. again: as in Plan. at_once: samples whose second reads share the cache.
inline double bytes_moved(const Workload& call, const DeviceLimits& device, int64_t again, int at_once = 1) {
  const double batch = static_cast<double>(call.batch);
  // Half of the cache is assumed to serve second reads.
  const double cached = 0.5 * static_cast<double>(device.cache) / at_once;
  const double twice = std::max(0.0, static_cast<double>(again) * call.reread - cached);
  return batch * (static_cast<double>(call.elements) * (call.read + call.written) + twice);
}

// From the start of the launch to its end. Samples go in rounds of plan.teams; every `active` teams put one block on
// each multiprocessor. A round takes the longer of two times: the device's for all samples of the round, and a
// multiprocessor's for its own shares. The first round also waits for its sums (`wait`) and for the weights; each
// further round costs `between` beside its bytes.
inline double seconds_of(const Workload& call, const DeviceLimits& device, const Plan& plan, int64_t active,
                         double wait, double between) {
  const double reached = (plan.teams > active ? kCrowded : 1.0) * kReached * device.bandwidth;
  const double elements = static_cast<double>(call.elements);
  const double read = elements * call.read;
  const double rest = elements * call.written + kReadAgain * static_cast<double>(plan.again) * call.reread;
  const auto move = [&](double bytes, int64_t samples) {
    const double alone = bytes * static_cast<double>(plan.share) / elements * device.multiprocessors / kFasterAlone;
    const double blocks = static_cast<double>(ceil_div(samples, active));
    return std::max(static_cast<double>(samples) * bytes, blocks * alone) / reached;
  };
  double weighed = 0;
  if (call.heads > 0 && !plan.weigh_first) {
    // Each block of a multiprocessor weighs the batch for itself.
    const int64_t samples = call.batch * ceil_div(plan.blocks(), device.multiprocessors);
    weighed = kWeights + static_cast<double>(call.batch) * kWeightsASample + weighing_seconds(call, device, samples);
  }
  const int64_t following = ceil_div(call.batch - plan.teams, plan.teams);
  double seconds = kStart + std::max(move(read, plan.teams) + wait, weighed) + move(rest, plan.teams);
  if (following > 0) {
    const int64_t last = call.batch - following * plan.teams;
    seconds += static_cast<double>(following) * between +
               static_cast<double>(following - 1) * move(read + rest, plan.teams) + move(read + rest, last);
  }
  return seconds;
}

// Elements of every block's next share to prefetch: as many as a quarter of the cache holds.
inline int64_t prefetched(const Workload& call, const DeviceLimits& device, const Plan& plan) {
  if (device.capability < 90) return 0;
  const int64_t each = device.cache / 4 / (plan.blocks() * call.read);
  return std::min(plan.share, each / call.vector * call.vector);
}

// Whether the batch is too large for every block to weigh it itself.
inline bool must_weigh_first(const Workload& call) {
  return call.heads > 0 &&
         (call.batch > kWeighedSamples || call.batch * call.heads > kWeighedLogits || call.bins > kWeighedBins);
}

// A plan with the launches before the main one and their seconds; a schedule adds the rest.
inline Plan launches_before(const Workload& call, const DeviceLimits& device, bool weigh_first) {
  Plan plan;
  plan.weigh_first = weigh_first;
  plan.weighing = weighing_threads(call, weigh_first);
  plan.count_first = call.mask_entries > kCountedEntries;
  plan.seconds = plan.count_first * kStart;
  if (weigh_first) {
    const int64_t blocks = weighing_blocks(call.batch, call.bins);
    const int64_t of_block =
        blocks == 1 ? call.batch : ceil_div(call.batch, blocks * kWeighManyThreads) * kWeighManyThreads;
    plan.seconds += kStart + (weighing_launches(call, true) - 1) * kFollowing;
    plan.seconds += weighing_seconds(call, device, of_block * ceil_div(blocks, device.multiprocessors));
  }
  return plan;
}

inline double cluster_seconds(const Workload& call, const DeviceLimits& device, const Plan& plan) {
  int index = 0;
  while (index < kClusterSizes - 1 && 1 << index < plan.team) ++index;
  const int active = device.active_clusters[index];
  return (plan.team > 1 ? kClusterStart : 0) +
         seconds_of(call, device, plan, active, kClusterWait, plan.teams > active ? kOverlapped : kClusterTurn);
}

// Returns false if a sample does not fit, or the device cannot schedule this size.
inline bool plan_cluster(const Workload& call, const DeviceLimits& device, bool weigh_first, int index, Plan* found) {
  const int size = 1 << index;
  const int active = device.active_clusters[index];
  if (active == 0) return false;
  Plan plan = launches_before(call, device, weigh_first);
  const int64_t vectors = ceil_div(call.elements, call.vector);
  const int64_t share = ceil_div(vectors, size);
  plan.schedule = Schedule::cluster;
  plan.team = size;
  plan.share = share * call.vector;
  plan.shared_bytes = plan.share * call.arithmetic + weight_bytes(call, weigh_first);
  if (plan.shared_bytes + kStaticShared > device.shared_per_block) return false;
  plan.held = static_cast<int>(share);  // the whole share
  plan.bytes = bytes_moved(call, device, 0);
  plan.prefetched = prefetched(call, device, plan);
  const double before = plan.seconds;
  // Blocks per multiprocessor that shared memory allows. Where samples outnumber the resident clusters, several small
  // blocks side by side are an alternative to a large one.
  const int64_t by_shared = device.shared_per_multiprocessor / (plan.shared_bytes + kStaticShared + 1024);
  const auto consider = [&](int most, int64_t resident) {
    plan.threads = threads_for(share, call.general, most - plan.weighing) + plan.weighing;
    const int64_t by_registers = warps_by_registers(call.general) / (plan.threads / 32);
    resident = std::max<int64_t>(1, std::min(resident, by_registers));
    plan.teams = static_cast<int>(std::min(call.batch, active * resident));
    plan.seconds = before + cluster_seconds(call, device, plan);
    if (plan.seconds < found->seconds) *found = plan;
  };
  found->seconds = INFINITY;
  consider(most_threads(call.general), by_shared);
  for (int64_t resident = 2; call.batch > active && resident <= std::min<int64_t>(by_shared, kMostCrowded);
       ++resident) {
    consider(kCrowdedThreads, resident);
  }
  return true;
}

// The most teams of a grid: each has a sample and at least two blocks.
inline int most_teams(const Workload& call, const DeviceLimits& device) {
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(call.batch, device.multiprocessors / 2), 1, kMaxTeams));
}

// Returns false if not one vector fits, or the kernel's 32-bit counts of elements and arrivals would overflow.
inline bool plan_grid(const Workload& call, const DeviceLimits& device, bool weigh_first, int teams, Plan* found) {
  Plan plan = launches_before(call, device, weigh_first);
  const int64_t vectors = ceil_div(call.elements, call.vector);
  const int64_t share = ceil_div(vectors, device.multiprocessors / teams);
  const int64_t rounds = ceil_div(call.batch, teams);
  plan.schedule = Schedule::grid;
  plan.team = static_cast<int>(ceil_div(vectors, share));
  plan.teams = teams;
  plan.share = share * call.vector;
  if (plan.share > INT32_MAX || rounds >= INT32_MAX || ceil_div(rounds, 2) > UINT32_MAX / plan.team) return false;
  plan.threads = threads_for(share, call.general, kMaxThreads - plan.weighing) + plan.weighing;
  const int64_t room = device.shared_per_block - kStaticShared - weight_bytes(call, weigh_first);
  const int64_t bytes_a_vector = static_cast<int64_t>(call.vector) * call.arithmetic;
  if (room < bytes_a_vector) return false;
  plan.buffers = rounds > 1 && 2 * share * bytes_a_vector <= room ? 2 : 1;
  plan.held = static_cast<int>(std::min(share, room / bytes_a_vector));
  plan.shared_bytes = plan.held_bytes(call) + weight_bytes(call, weigh_first);
  const int64_t last = vectors - (plan.team - 1) * share;  // the share of the last block, which may be smaller
  if (call.written > 0 && plan.held < share) {
    plan.again = ((plan.team - 1) * (share - plan.held) + std::max<int64_t>(0, last - plan.held)) * call.vector;
  }
  plan.bytes = bytes_moved(call, device, plan.again, teams);
  plan.seconds += kGridStart + seconds_of(call, device, plan, teams, kGridWait, plan.buffers == 2 ? kAhead : kGridTurn);
  plan.prefetched = prefetched(call, device, plan);
  *found = plan;
  return true;
}

// Calls use(plan) for every allowed plan that can run: clusters by size, then grids with the most teams, then with
// fewer, by powers of two. Weights are computed first if they must be, or if that is faster: the launch then frees
// shared memory for samples.
template <class Use>
inline void for_candidates(const Workload& call, const DeviceLimits& device, const Allowed& allowed, const Use& use) {
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
  const int most = std::min(most_teams(call, device), allowed.teams == 0 ? kMaxTeams : allowed.teams);
  for (int teams = most; allowed.grid && teams > 0; teams = std::bit_floor(static_cast<unsigned>(teams - 1))) {
    consider([&](bool weigh_first, Plan* plan) { return plan_grid(call, device, weigh_first, teams, plan); });
    if (allowed.teams != 0) break;
  }
}

// The same call with statistics and a gradient. Schedules are chosen by this shape: asking for either must not change a
// bit of the loss.
inline Workload chosen_by(Workload call) {
  call.read = call.most_read;
  call.written = call.most_written;
  return call;
}

// A chosen plan with the bytes, prefetches and seconds of the call itself.
inline Plan serving(const Workload& call, const DeviceLimits& device, Plan plan) {
  if (plan.schedule == Schedule::grid) {
    plan_grid(call, device, plan.weigh_first, plan.teams, &plan);
    return plan;
  }
  plan.bytes = bytes_moved(call, device, 0);
  plan.prefetched = prefetched(call, device, plan);
  plan.seconds = launches_before(call, device, plan.weigh_first).seconds + cluster_seconds(call, device, plan);
  return plan;
}

// Every allowed plan that can run, the fastest first.
inline std::vector<Plan> plans(const Workload& call, const DeviceLimits& device, const Allowed& allowed = {}) {
  std::vector<Plan> found;
  for_candidates(chosen_by(call), device, allowed, [&](const Plan& candidate) { found.push_back(candidate); });
  std::stable_sort(found.begin(), found.end(), [](const Plan& a, const Plan& b) { return a.seconds < b.seconds; });
  for (Plan& each : found) each = serving(call, device, each);
  return found;
}

// The fastest allowed plan. Throws std::invalid_argument if no allowed plan can run.
inline Plan plan(const Workload& call, const DeviceLimits& device, const Allowed& allowed = {}) {
  Plan best;
  bool found = false;
  for_candidates(chosen_by(call), device, allowed, [&](const Plan& candidate) {
    if (!found || candidate.seconds < best.seconds) best = candidate;
    found = true;
  });
  if (!found) throw std::invalid_argument("no allowed schedule can hold this sample on this device");
  return serving(call, device, best);
}

// The texts that parse_allowed reads.
constexpr const char* kAllowed = "cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64";
static_assert(kClusterSizes == 5 && kMaxTeams == 64);

// "" and "auto" allow all schedules. Returns false if the text is neither of these nor one of kAllowed.
inline bool parse_allowed(const std::string& text, Allowed* allowed) {
  *allowed = {};
  if (text.empty() || text == "auto") return true;
  allowed->grid = text.rfind("grid", 0) == 0;
  allowed->cluster = !allowed->grid;
  if (text == "grid" || text == "cluster") return true;
  for (int teams = 1; allowed->grid && teams <= kMaxTeams; ++teams) {
    if (text == "grid:" + std::to_string(teams)) allowed->teams = teams;
  }
  for (int size = 1; allowed->cluster && size < 1 << kClusterSizes; size *= 2) {
    if (text == "cluster:" + std::to_string(size)) allowed->size = size;
  }
  return allowed->teams + allowed->size > 0;
}

}  // namespace fdkernels
