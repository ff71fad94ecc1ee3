// What a thread of the device may do, declared in include/software_device.h.
#include <algorithm>
#include <cstring>

#include "grid.h"

namespace software {

namespace {

int lane() {
  return static_cast<int>(me().index % kWarp);
}

std::string place(const char* what, const Site& site) {
  return std::string(what) + " of line " + std::to_string(site.line());
}

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// What each of these knows once they have met.
Knowledge met(const std::vector<Clock>& members) {
  Knowledge sum, last;
  for (const Clock& member : members) {
    if (member.others != last) sum = joined(sum, last = member.others);
  }
  auto all = sum == nullptr ? std::make_shared<Time>() : std::make_shared<Time>(*sum);
  for (const Clock& member : members) {
    if (all->size() <= member.thread) all->resize(member.thread + 1);
    (*all)[member.thread] = member.own;
  }
  return all;
}

Knowledge met(const std::vector<Thread*>& members) {
  std::vector<Clock> clocks;
  for (const Thread* member : members) clocks.push_back(member->clock);
  return met(clocks);
}

uint64_t result(const std::array<uint64_t, kWarp>& values, unsigned mask, unsigned source, Collective kind) {
  if (kind != Collective::vote) return values[source];
  uint64_t votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) votes |= (mask >> lane & 1 & values[lane]) << lane;
  return votes;
}

// Whether these threads make up whole warps of a block.
bool are_whole_warps(const std::vector<Clock>& members, const Block& block) {
  std::vector<unsigned> lanes(block.launch->threads / kWarp + 1);
  for (const Clock& member : members) ++lanes[(member.thread - block.first) / kWarp];
  return std::all_of(lanes.begin(), lanes.end(), [](unsigned count) { return count % kWarp == 0; });
}

// A barrier of `expected` threads of a block: the last one to arrive wakes those that wait.
void meet(Barrier& barrier, int expected, int vote, Vote kind, bool waits, Site site, const char* name) {
  Executor& run = executor();
  Thread& self = me();
  const bool first = barrier.arrived.empty();
  const bool of_all = &barrier == &self.block->barrier;
  if (first) barrier.votes = 0, barrier.site = site, barrier.expected = expected;
  // Threads may come to a named barrier from several places.
  if (of_all && !same(barrier.site, site)) {
    run.fault("divergent barriers: " + place(name, site) + " while others wait at that of line " +
              std::to_string(barrier.site.line()));
  }
  if (barrier.expected != expected) {
    run.fault("divergent barriers: " + place(name, site) + " expects " + std::to_string(expected) +
              " threads, others " + std::to_string(barrier.expected));
  }
  if (waits) barrier.waiting.push_back(&self);
  barrier.votes += vote;
  barrier.arrived.push_back(self.clock);
  ++self.clock.own;
  if (static_cast<int>(barrier.arrived.size()) < expected) {
    if (waits) run.wait(name, site);
    return;
  }
  if (!of_all && !are_whole_warps(barrier.arrived, *self.block)) {
    run.fault(place(name, site) + " at which a part of a warp has arrived");
  }
  const Knowledge all = met(barrier.arrived);
  const int votes = kind == Vote::all ? barrier.votes == expected : barrier.votes;
  for (Thread* thread : barrier.waiting) {
    thread->clock.acquire(all);
    thread->votes = votes;
    if (thread != &self) run.wake(*thread);
  }
  barrier.arrived.clear(), barrier.waiting.clear();
  run.may_switch();
}

// Ends a round of the cluster's barrier if all threads that are left have arrived.
void complete(Cluster& cluster) {
  size_t alive = 0;
  for (const Block* block : cluster.blocks) alive += block->alive;
  if (cluster.arrived.size() < alive || cluster.arrived.empty()) return;
  cluster.knowledge = met(cluster.arrived);
  cluster.arrived.clear();
  ++cluster.round;
  for (const Block* block : cluster.blocks) {
    for (unsigned i = 0; i < block->launch->threads; ++i) {
      Thread& other = executor().thread_of(*block, i);
      if (other.state == State::waiting && other.waits == kClusterWait) executor().wake(other);
    }
  }
}

}  // namespace

unsigned thread_index() {
  return me().index;
}
unsigned block_index() {
  return me().block->index;
}
unsigned block_threads() {
  return me().block->launch->threads;
}
unsigned grid_blocks() {
  return me().block->launch->blocks;
}
unsigned cluster_blocks() {
  return me().block->launch->cluster;
}
unsigned cluster_rank() {
  return me().block->index % me().block->launch->cluster;
}

int sync_block(int vote, Vote kind, Site site) {
  Block& block = *me().block;
  const unsigned threads = block.launch->threads;
  if (block.alive < threads) {
    executor().fault("divergent barriers: " + place("__syncthreads", site) + ", when " +
                     std::to_string(threads - block.alive) + " threads have left");
  }
  meet(block.barrier, static_cast<int>(threads), vote, kind, true, site, "__syncthreads");
  return me().votes;
}

void sync_named(int barrier, int threads, bool waits, Site site) {
  Block& block = *me().block;
  if (barrier == 0 && waits && threads == static_cast<int>(block.launch->threads)) {
    sync_block(0, Vote::none, site);
    return;
  }
  if (barrier < 1 || barrier > 15 || threads <= 0 || threads % static_cast<int>(kWarp) != 0) {
    executor().fault("a named barrier takes a number from 1 to 15 and whole warps; 0 is of all threads");
  }
  meet(block.named[barrier], threads, 0, Vote::none, waits, site, "a named barrier");
}

uint64_t warp_collective(unsigned mask, uint64_t value, unsigned source, Collective kind, Site site) {
  Executor& run = executor();
  Thread& self = me();
  Block& block = *self.block;
  const unsigned warp = self.index / kWarp, bit = 1u << lane();
  if ((mask & bit) == 0) run.fault(place("a warp's collective", site) + " by a lane that its mask leaves out");
  if (kind == Collective::shuffle && (mask >> source & 1) == 0) {
    run.fault(place("a shuffle", site) + " from a lane that its mask leaves out");
  }
  Exchange* exchange = &block.exchanges[warp];
  if (mask != exchange->mask) {  // of a part of a warp
    const auto same = [&](const Exchange& other) { return other.warp == warp && other.mask == mask; };
    const auto found = std::find_if(block.exchanges.begin(), block.exchanges.end(), same);
    exchange = found != block.exchanges.end() ? &*found : &block.exchanges.emplace_back(Exchange{warp, mask});
  }
  if (exchange->arrived != 0 && (!same(exchange->site, site) || exchange->kind != kind)) {
    run.fault("divergent warp: " + place("a collective", site) + " while others of its warp are at that of line " +
              std::to_string(exchange->site.line()));
  }
  exchange->site = site, exchange->kind = kind;
  exchange->arrived |= bit;
  auto& values = exchange->values[exchange->round % 2];
  values[static_cast<size_t>(lane())] = value;
  if (exchange->arrived != mask) {
    run.wait("a warp's collective", site);
    return result(values, mask, source, kind);
  }
  std::vector<Thread*> members;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) != 0) members.push_back(&run.thread_of(block, warp * kWarp + i));
  }
  exchange->arrived = 0;
  ++exchange->round;
  const Knowledge all = kind == Collective::sync ? met(members) : nullptr;  // only a sync orders memory
  for (Thread* member : members) {
    if (kind == Collective::sync) member->clock.others = all, ++member->clock.own;
    if (member != &self) run.wake(*member);
  }
  run.may_switch();
  return result(values, mask, source, kind);
}

void cluster_arrive(Site site) {
  Thread& self = me();
  Cluster& cluster = *self.block->cluster;
  if (self.arrived) executor().fault(place("a second arrival at a cluster's barrier", site) + " without a wait");
  self.arrived = true;
  if (self.block->launch->cluster == 1) return;
  self.round = cluster.round + 1;
  cluster.arrived.push_back(self.clock);
  ++self.clock.own;
  complete(cluster);
  executor().may_switch();
}

void cluster_wait(Site site) {
  Thread& self = me();
  Cluster& cluster = *self.block->cluster;
  if (!self.arrived) executor().fault(place("a wait at a cluster's barrier", site) + " without an arrival");
  self.arrived = false;
  // In a launch without clusters this is __syncthreads, which a block's threads reach at one place.
  if (self.block->launch->cluster == 1) return static_cast<void>(sync_block(0, Vote::none, site));
  while (cluster.round < self.round) executor().wait(kClusterWait, site);
  self.clock.acquire(cluster.knowledge);
}

void* map_shared(const void* address, unsigned rank) {
  Block& own = *me().block;
  Cluster& cluster = *own.cluster;
  if (rank >= cluster.blocks.size()) executor().fault("map_shared_rank: a rank beyond the cluster");
  return cluster.blocks[rank]->shared + (static_cast<const char*>(address) - own.shared);
}

std::string leave(Thread& thread) {
  Block& block = *thread.block;
  if (!block.barrier.arrived.empty()) {
    return "divergent barriers: a thread leaves while others wait at __syncthreads of line " +
           std::to_string(block.barrier.site.line());
  }
  for (const Exchange& exchange : block.exchanges) {
    if (exchange.warp == thread.index / kWarp && exchange.arrived != 0 &&
        (exchange.mask >> thread.index % kWarp & 1) != 0) {
      return "divergent warp: a lane leaves while others wait for it at line " + std::to_string(exchange.site.line());
    }
  }
  if (thread.arrived) return "a thread leaves between its arrival at a cluster's barrier and the wait";
  for (const auto& [number, barrier] : block.named) {
    if (block.alive == 0 && !barrier.arrived.empty()) {
      return "a block ends, and " + std::to_string(barrier.arrived.size()) + " threads have arrived at named barrier " +
             std::to_string(number) + " in vain";
    }
  }
  complete(*block.cluster);
  return {};
}

// ---- memory

void access(const void* address, size_t bytes, Access how) {
  Executor& run = executor();
  Thread* self = run.current;
  if (self == nullptr || self->fiber->owns(address)) return;
  run.step();
  const auto at = reinterpret_cast<uintptr_t>(address);
  const bool writes = how == Access::write || how == Access::atomic_write;
  const auto what = [&] { return std::string(writes ? "write" : "read") + " of " + std::to_string(bytes) + " bytes "; };
  Region* region = run.memory.find(at, bytes);
  if (region == nullptr) region = run.find_shared(at);
  if (region == nullptr || !region->holds(at, bytes)) {
    if (!writes && is_constant(address)) return;
    run.fault(what() + run.nearest(at));
  }
  if (at % bytes != 0 && (bytes & (bytes - 1)) == 0) run.fault("misaligned " + what() + "of " + region->name);
  if (region->block != nullptr && region->block != self->block) {
    if (region->block->cluster != self->block->cluster) run.fault("access to shared memory of another cluster");
    if (region->block->alive == 0) run.fault("access to " + region->name + ", which has left its cluster");
    // The block may have begun by chance: this thread must have met one of its threads.
    if (known(self->clock.others, region->block->first) == 0) {
      run.fault("access to " + region->name + ", which may not have begun");
    }
  }
  const std::string wrong = software_sees_accesses ? region->check(self->clock, at, bytes, how) : "";
  if (!wrong.empty()) {
    run.fault(wrong + ", at byte " + std::to_string(at - region->begin) + " of " + region->name);
  }
  if (writes) run.progress();
  if (region->is_shared_by_blocks || (region->block != nullptr && region->block != self->block)) run.may_switch();
}

void load(void* to, const void* from, size_t bytes, Access how) {
  access(from, bytes, how);
  std::memcpy(to, from, bytes);
}

void store(void* to, const void* from, size_t bytes) {
  access(to, bytes, Access::write);
  std::memcpy(to, from, bytes);
}

void check_prefetch(uintptr_t from, size_t bytes) {
  Executor& run = executor();
  if (from % 16 != 0 || bytes % 16 != 0 || bytes == 0) run.fault("a prefetch of what is no whole units of 16 bytes");
  // It moves whole units of 16 bytes. A tensor may have only a part of the first and of the last one.
  if (run.memory.find(from, 1) == nullptr && run.memory.find(from + 15, 1) == nullptr) {
    run.fault("a prefetch " + run.nearest(from));
  }
  if (run.memory.find(from + bytes - 1, 1) == nullptr && run.memory.find(from + bytes - 16, 1) == nullptr) {
    run.fault("a prefetch that ends " + run.nearest(from + bytes));
  }
}

void fence() {
  Thread& self = me();
  self.clock.acquire(self.clock.pending);
  self.clock.fenced = self.clock.all();
  ++self.clock.own;
  executor().may_switch();
}

void sleep(Site site) {
  executor().sleep("__nanosleep", site);
}

}  // namespace software
