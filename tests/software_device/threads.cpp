// What a thread of the device may do: include/software_device.h.
#include <algorithm>
#include <cstring>

#include "grid.h"

namespace software {

namespace {

Thread& me() {
  return *executor().current;
}

int lane() {
  return static_cast<int>(me().index % kWarp);
}

std::string place(int line, const char* what) {
  return std::string(what) + " of line " + std::to_string(line);
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

// A barrier of `expected` threads of a block: the last one takes along those that wait.
void meet(Barrier& barrier, int expected, int vote, Vote kind, bool waits, int line, const char* name) {
  Executor& run = executor();
  Thread& self = me();
  const bool first = barrier.arrived.empty();
  if (first) barrier.votes = 0, barrier.line = 0, barrier.expected = expected;
  // Whoever names a barrier may come to it from several places.
  if (&barrier == &self.block->barrier && barrier.line != 0 && barrier.line != line) {
    run.fault("divergent barriers: " + place(line, name) + " while others wait at that of line " +
              std::to_string(barrier.line));
  }
  if (barrier.expected != expected) {
    run.fault("divergent barriers: " + place(line, name) + " expects " + std::to_string(expected) +
              " threads, others " + std::to_string(barrier.expected));
  }
  if (waits) barrier.line = line, barrier.waiting.push_back(&self);
  barrier.votes += vote;
  barrier.arrived.push_back(self.clock);
  ++self.clock.own;
  if (static_cast<int>(barrier.arrived.size()) < expected) {
    if (waits) run.wait(name, line);
    return;
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

// Ends a round of the cluster's barrier where all that are left have arrived.
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

int sync_block(int vote, Vote kind, int line) {
  Block& block = *me().block;
  const unsigned threads = block.launch->threads;
  if (block.alive < threads) {
    executor().fault("divergent barriers: " + place(line, "__syncthreads") + ", when " +
                     std::to_string(threads - block.alive) + " threads have left");
  }
  meet(block.barrier, static_cast<int>(threads), vote, kind, true, line, "__syncthreads");
  return me().votes;
}

void sync_named(int barrier, int threads, bool waits, int line) {
  Block& block = *me().block;
  if (barrier == 0 && waits && threads == static_cast<int>(block.launch->threads)) {
    sync_block(0, Vote::none, line);
    return;
  }
  if (barrier < 1 || barrier > 15 || threads <= 0 || threads % static_cast<int>(kWarp) != 0) {
    executor().fault("a named barrier takes a number from 1 to 15 and whole warps; 0 is of all threads");
  }
  meet(block.named[barrier], threads, 0, Vote::none, waits, line, "a named barrier");
}

uint64_t warp_collective(unsigned mask, uint64_t value, unsigned source, Collective kind, int line) {
  Executor& run = executor();
  Thread& self = me();
  Block& block = *self.block;
  const unsigned warp = self.index / kWarp, bit = 1u << lane();
  if ((mask & bit) == 0) run.fault(place(line, "a warp's collective") + " by a lane that its mask leaves out");
  Exchange* exchange = &block.exchanges[warp];
  if (mask != exchange->mask) {  // of a part of a warp
    const auto same = [&](const Exchange& other) { return other.warp == warp && other.mask == mask; };
    const auto found = std::find_if(block.exchanges.begin(), block.exchanges.end(), same);
    exchange = found != block.exchanges.end() ? &*found : &block.exchanges.emplace_back(Exchange{warp, mask});
  }
  if (exchange->arrived != 0 && (exchange->line != line || exchange->kind != kind)) {
    run.fault("divergent warp: " + place(line, "a collective") + " while others of its warp are at that of line " +
              std::to_string(exchange->line));
  }
  exchange->line = line, exchange->kind = kind;
  exchange->arrived |= bit;
  auto& values = exchange->values[exchange->round % 2];
  values[static_cast<size_t>(lane())] = value;
  if (exchange->arrived != mask) {
    run.wait("a warp's collective", line);
    return result(values, mask, source, kind);
  }
  std::vector<Thread*> members;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) != 0) members.push_back(&run.thread_of(block, warp * kWarp + i));
  }
  exchange->arrived = 0;
  ++exchange->round;
  const Knowledge all = kind == Collective::sync ? met(members) : nullptr;  // that alone orders memory
  for (Thread* member : members) {
    if (kind == Collective::sync) member->clock.others = all, ++member->clock.own;
    if (member != &self) run.wake(*member);
  }
  run.may_switch();
  return result(values, mask, source, kind);
}

void cluster_arrive(int line) {
  Thread& self = me();
  Cluster& cluster = *self.block->cluster;
  if (self.arrived) executor().fault(place(line, "a second arrival at a cluster's barrier") + " without a wait");
  self.arrived = true;
  self.round = cluster.round + 1;
  cluster.arrived.push_back(self.clock);
  ++self.clock.own;
  complete(cluster);
  executor().may_switch();
}

void cluster_wait(int line) {
  Thread& self = me();
  Cluster& cluster = *self.block->cluster;
  if (!self.arrived) executor().fault(place(line, "a wait at a cluster's barrier") + " without an arrival");
  self.arrived = false;
  while (cluster.round < self.round) executor().wait(kClusterWait, line);
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
           std::to_string(block.barrier.line);
  }
  for (const Exchange& exchange : block.exchanges) {
    if (exchange.warp == thread.index / kWarp && exchange.arrived != 0 &&
        (exchange.mask >> thread.index % kWarp & 1) != 0) {
      return "divergent warp: a lane leaves while others wait for it at line " + std::to_string(exchange.line);
    }
  }
  if (thread.arrived) return "a thread leaves between its arrival at a cluster's barrier and the wait";
  complete(*block.cluster);
  return {};
}

// ---- memory

namespace {

[[noreturn]] void fault_at(const void* code, const std::string& what) {
  executor().fault(what + ", " + line_of(code));
}

}  // namespace

void access(const void* address, size_t bytes, Access how) {
  access_from(__builtin_return_address(0), address, bytes, how);
}

void access_from(const void* code, const void* address, size_t bytes, Access how) {
  Executor& run = executor();
  Thread* self = run.current;
  if (self == nullptr || self->fiber->owns(address)) return;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const bool writes = how == Access::write || how == Access::atomic_write;
  Region* region = run.memory.find(at, bytes);
  if (region == nullptr) region = run.find_shared(at);
  if (region == nullptr || !region->holds(at, bytes)) {
    if (!writes && is_constant(address)) return;
    fault_at(code,
             std::string(writes ? "write" : "read") + " of " + std::to_string(bytes) + " bytes " + run.nearest(at));
  }
  if (at % bytes != 0 && (bytes & (bytes - 1)) == 0) {
    fault_at(code, "misaligned " + std::string(writes ? "write" : "read") + " of " + std::to_string(bytes) +
                       " bytes of " + region->name);
  }
  if (region->block != nullptr && region->block != self->block) {
    if (region->block->cluster != self->block->cluster) fault_at(code, "access to shared memory of another cluster");
    if (region->block->alive == 0) fault_at(code, "access to " + region->name + ", which has left its cluster");
    if (!region->block->begun) fault_at(code, "access to " + region->name + ", which has not begun");
  }
  const std::string wrong = region->check(self->clock, at, bytes, how);
  if (!wrong.empty()) {
    fault_at(code, wrong + ", at byte " + std::to_string(at - region->begin) + " of " + region->name);
  }
  if (writes) run.progress();
  if (region->is_shared_by_blocks || (region->block != nullptr && region->block != self->block)) run.may_switch();
}

void load(void* to, const void* from, size_t bytes, Access how) {
  access_from(__builtin_return_address(0), from, bytes, how);
  std::memcpy(to, from, bytes);
}

void store(void* to, const void* from, size_t bytes) {
  access_from(__builtin_return_address(0), to, bytes, Access::write);
  std::memcpy(to, from, bytes);
}

void check_prefetch(uintptr_t from, size_t bytes) {
  Executor& run = executor();
  if (from % 16 != 0 || bytes % 16 != 0 || bytes == 0) run.fault("a prefetch of what is no whole units of 16 bytes");
  // It moves whole units, of which a tensor may have a part: what is in it must be of a page that is there.
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

void sleep() {
  executor().sleep("__nanosleep", 0);
}

// ---- atomics

namespace {

struct Atomic {
  Knowledge released;
  const Block* only = nullptr;  // of block scope: whose
};

std::unordered_map<const void*, Atomic>& atomics() {
  static std::unordered_map<const void*, Atomic> all;
  return all;
}

Atomic& atomic_at(const void* address, size_t bytes, bool writes, bool device_scope) {
  executor().may_switch();
  access(address, bytes, writes ? Access::atomic_write : Access::atomic_read);
  Atomic& found = atomics()[address];
  const Block* block = me().block;
  if (!device_scope && found.only != nullptr && found.only != block) {
    executor().fault("an atomic of block scope, where another block's are");
  }
  found.only = block;
  return found;
}

}  // namespace

void forget_atomics() {
  atomics().clear();
}

void peek(void* to, const void* from, size_t bytes, Order order, bool device_scope) {
  Thread& self = me();
  Atomic& at = atomic_at(from, bytes, false, device_scope);
  uint64_t value = 0;
  std::memcpy(&value, from, bytes);
  if (self.polled == from && self.found == value) {
    executor().sleep("an atomic load", 0);
    std::memcpy(&value, from, bytes);
  }
  self.polled = from, self.found = value;
  if (order == Order::acquire) {
    self.clock.acquire(at.released);
  } else {
    self.clock.pending = joined(self.clock.pending, at.released);
  }
  std::memcpy(to, &value, bytes);
}

void begin_atomic(void* old, const void* address, size_t bytes, Order order, bool device_scope) {
  Thread& self = me();
  Atomic& at = atomic_at(address, bytes, true, device_scope);
  if (order == Order::acquire || order == Order::acq_rel) {
    self.clock.acquire(at.released);
  } else {
    self.clock.pending = joined(self.clock.pending, at.released);
  }
  const bool releases = order == Order::release || order == Order::acq_rel;
  // A read and write carries on what earlier ones released.
  at.released = joined(at.released, releases ? self.clock.all() : self.clock.fenced);
  if (releases) ++self.clock.own;
  std::memcpy(old, address, bytes);
}

void end_atomic(void* address, const void* now, size_t bytes) {
  std::memcpy(address, now, bytes);
  executor().progress();
}

}  // namespace software
