// Atomics and what they order, declared in include/software_device.h.
#include <cstring>

#include "grid.h"

namespace software {

namespace {

struct Atomic {
  Knowledge released;
  const Block* only = nullptr;  // the block of the last access
};

std::unordered_map<const void*, Atomic>& atomics() {
  static std::unordered_map<const void*, Atomic> all;
  return all;
}

Atomic& atomic_at(const void* address, size_t bytes, bool writes, bool device_scope) {
  Executor& run = executor();
  run.may_switch();
  const auto at = reinterpret_cast<uintptr_t>(address);
  const Region* region = run.memory.find(at, bytes);
  Atomic& found = atomics()[address];
  if (region == nullptr || !region->is_atomic(at)) found = {};  // a plain write ends what was released
  access(address, bytes, writes ? Access::atomic_write : Access::atomic_read);
  const Block* block = me().block;
  if (!device_scope && found.only != nullptr && found.only != block) {
    run.fault("an atomic of block scope, where another block's are");
  }
  found.only = block;
  return found;
}

void acquire(Clock& clock, const Atomic& from, bool now) {
  if (now) {
    clock.acquire(from.released);
  } else {
    clock.pending = joined(clock.pending, from.released);
  }
}

bool acquires(Order order) {
  return order == Order::acquire || order == Order::acq_rel;
}

// What a write of this order lets others acquire.
Knowledge released_by(Clock& clock, Order order) {
  const bool all = order == Order::release || order == Order::acq_rel;
  const Knowledge released = all ? clock.all() : clock.fenced;
  if (all) ++clock.own;
  return released;
}

}  // namespace

void forget_atomics() {
  atomics().clear();
}

void peek(void* to, const void* from, size_t bytes, Order order, bool device_scope, Site site) {
  Thread& self = me();
  constexpr int kPolls = 4;
  const bool again = self.polled == from && std::memcmp(&self.found, from, bytes) == 0;
  self.polls = again ? self.polls + 1 : 0;
  if (self.polls >= kPolls) executor().sleep("an atomic load", site);
  const Atomic& at = atomic_at(from, bytes, false, device_scope);
  std::memcpy(to, from, bytes);
  self.polled = from;
  std::memcpy(&self.found, from, bytes);
  acquire(self.clock, at, acquires(order));
}

void poke(void* to, const void* from, size_t bytes, Order order, bool device_scope) {
  Atomic& at = atomic_at(to, bytes, true, device_scope);
  at.released = released_by(me().clock, order);
  end_atomic(to, from, bytes);
}

void begin_atomic(void* old, const void* address, size_t bytes, Order order, bool device_scope) {
  Clock& clock = me().clock;
  Atomic& at = atomic_at(address, bytes, true, device_scope);
  acquire(clock, at, acquires(order));
  // A read-modify-write keeps what earlier ones released.
  at.released = joined(at.released, released_by(clock, order));
  std::memcpy(old, address, bytes);
}

void end_atomic(void* address, const void* now, size_t bytes) {
  std::memcpy(address, now, bytes);
  executor().progress();
}

}  // namespace software
