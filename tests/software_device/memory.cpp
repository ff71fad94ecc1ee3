#include "memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace software {

namespace {

uint64_t current_epoch = 1;

}  // namespace

uint32_t known(const Knowledge& of, uint32_t thread) {
  return of != nullptr && thread < of->size() ? (*of)[thread] : 0;
}

Knowledge joined(const Knowledge& a, const Knowledge& b) {
  if (a == nullptr || a == b) return b;
  if (b == nullptr) return a;
  static Knowledge first, second, both;  // of the last call: a block's threads ask for the same one by one
  if (first == a && second == b) return both;
  first = a, second = b;
  const Time &more = a->size() >= b->size() ? *a : *b, &less = a->size() >= b->size() ? *b : *a;
  auto result = std::make_shared<Time>(more);
  for (size_t i = 0; i < less.size(); ++i) (*result)[i] = std::max((*result)[i], less[i]);
  return both = result;
}

Knowledge Clock::all() const {
  auto result = others == nullptr ? std::make_shared<Time>() : std::make_shared<Time>(*others);
  if (result->size() <= thread) result->resize(thread + 1);
  (*result)[thread] = own;
  return result;
}

namespace {

// A thread's last access is enough: whoever knows of it knows of those before.
template <class Moment>
void record(std::vector<Moment>& moments, const Moment& last) {
  const auto same = [&](const Moment& m) { return m.thread == last.thread && m.writes == last.writes; };
  const auto found = std::find_if(moments.rbegin(), moments.rend(), same);
  if (found != moments.rend()) {
    found->when = last.when;
  } else {
    moments.push_back(last);
  }
}

}  // namespace

Region::Region(uintptr_t begin, size_t bytes, unsigned grain, bool is_written, std::string name, Block* block)
    : begin(begin),
      end(begin + bytes),
      grain(grain),
      name(std::move(name)),
      block(block),
      written_(bytes, is_written) {}

void Region::mark_written(uintptr_t address, size_t bytes) {
  std::fill_n(written_.begin() + static_cast<ptrdiff_t>(address - begin), bytes, uint8_t{1});
}

void Region::take_written(const Region& part) {
  std::copy(part.written_.begin(), part.written_.end(), written_.begin() + static_cast<ptrdiff_t>(part.begin - begin));
}

void Region::forget() {
  cells_.clear();
  readers_.clear();
  atomics_.clear();
  is_shared_by_blocks = false;
}

bool Region::is_atomic(uintptr_t address) const {
  return epoch_ == current_epoch && !cells_.empty() && cells_[(address - begin) / grain].atomic;
}

std::string Region::check(const Clock& who, uintptr_t address, size_t bytes, Access how) {
  if (epoch_ != current_epoch) {
    forget();
    epoch_ = current_epoch;
  }
  if (cells_.empty()) cells_.resize((end - begin + grain - 1) / grain);
  const bool writes = how == Access::write || how == Access::atomic_write;
  const bool reads = !writes || how == Access::atomic_write;
  (writes ? bytes_written : bytes_read) += bytes;
  is_shared_by_blocks = is_shared_by_blocks || (writes && block == nullptr);
  uint8_t* written = written_.data() + (address - begin);
  if (reads && std::memchr(written, 0, bytes) != nullptr) return "read of memory that nothing has written";
  const size_t first = (address - begin) / grain, last = (address + bytes - 1 - begin) / grain;
  for (size_t i = first; i <= last; ++i) {
    std::string found = race(who, cells_[i], i, how);
    if (!found.empty()) return found;
  }
  if (writes) std::memset(written, 1, bytes);
  return {};
}

std::string Region::race(const Clock& who, Cell& cell, size_t index, Access how) {
  const bool writes = how == Access::write || how == Access::atomic_write;
  const bool atomic = how == Access::atomic_write || how == Access::atomic_read;
  if (how == Access::constant_read && (cell.write.when != 0 || cell.atomic)) {
    return "read-only load of memory that this launch has written";
  }
  if (writes && cell.constant) return "write to memory that this launch has read by a read-only load";
  const auto unseen = [&](const Moment& m) { return m.when != 0 && !who.has_seen(m.thread, m.when); };
  const auto race_with = [&](const char* what, const Moment& m) {
    return std::string(writes ? "race: write after " : "race: read after ") + what + " by " + thread_name(m.thread);
  };
  if (unseen(cell.write)) return race_with("a write", cell.write);
  if (cell.atomic && !atomic) {
    for (const Moment& m : atomics_[index]) {
      if ((writes || m.writes) && unseen(m)) return race_with(m.writes ? "an atomic write" : "an atomic read", m);
    }
  }
  const Moment now{who.thread, who.own, writes};
  if (writes && unseen(cell.read)) return race_with("a read", cell.read);
  if (writes && cell.many_readers) {
    for (const Moment& m : readers_[index]) {
      if (unseen(m)) return race_with("a read", m);
    }
  }
  if (atomic) {
    cell.atomic = true;
    record(atomics_[index], now);
  } else if (writes) {
    if (cell.many_readers) readers_.erase(index);
    if (cell.atomic) atomics_.erase(index);
    cell = {now, {}, false, false, cell.constant};
  } else {
    cell.constant = cell.constant || how == Access::constant_read;
    if (!cell.many_readers && unseen(cell.read)) {
      readers_[index].assign(1, cell.read);
      cell.many_readers = true;
    }
    if (cell.many_readers) record(readers_[index], now);
    cell.read = now;
  }
  return {};
}

size_t Memory::after(uintptr_t address) const {
  const auto at = std::upper_bound(regions_.begin(), regions_.end(), address,
                                   [](uintptr_t a, const auto& region) { return a < region->begin; });
  return static_cast<size_t>(at - regions_.begin());
}

Region* Memory::find(uintptr_t address, size_t bytes) {
  Region*& recent = recent_[address >> 10 & (kRecent - 1)];
  if (recent != nullptr && recent->holds(address, bytes)) return recent;
  const size_t next = after(address);
  if (next == 0 || !regions_[next - 1]->holds(address, bytes)) return nullptr;
  return recent = regions_[next - 1].get();
}

Region& Memory::add(uintptr_t begin, size_t bytes, unsigned grain, bool is_written, const std::string& name,
                    Block* block) {
  std::fill(std::begin(recent_), std::end(recent_), nullptr);
  const uintptr_t address = begin;
  uintptr_t end = begin + bytes;
  size_t first = after(begin);
  if (first > 0 && regions_[first - 1]->end > begin) --first;
  size_t last = first;
  int users = 1;
  for (; last < regions_.size() && regions_[last]->begin < end; ++last) {
    const Region& other = *regions_[last];
    if (other.begin <= begin && other.end >= end) {  // a part of a region that is there
      regions_[last]->users += 1;
      if (is_written) regions_[last]->mark_written(address, bytes);
      return *regions_[last];
    }
    begin = std::min(begin, other.begin), end = std::max(end, other.end), grain = std::min(grain, other.grain);
    users += other.users;
  }
  auto region = std::make_unique<Region>(begin, end - begin, grain, false, name, block);
  for (size_t i = first; i < last; ++i) {
    count(*regions_[i]);
    region->take_written(*regions_[i]);
  }
  if (is_written) region->mark_written(address, bytes);
  regions_.erase(regions_.begin() + static_cast<ptrdiff_t>(first), regions_.begin() + static_cast<ptrdiff_t>(last));
  region->users = users;
  return **regions_.insert(regions_.begin() + static_cast<ptrdiff_t>(first), std::move(region));
}

void Memory::release(uintptr_t address) {
  const size_t next = after(address);
  if (next == 0 || address >= regions_[next - 1]->end) return;
  if (--regions_[next - 1]->users > 0) return;
  count(*regions_[next - 1]);
  std::fill(std::begin(recent_), std::end(recent_), nullptr);
  regions_.erase(regions_.begin() + static_cast<ptrdiff_t>(next - 1));
}

void Memory::remove_of(const Block* block) {
  std::fill(std::begin(recent_), std::end(recent_), nullptr);
  std::erase_if(regions_, [&](const auto& region) { return region->block != nullptr && region->block == block; });
}

// Adds up a region's traffic when the region goes, or when traffic is asked for.
void Memory::count(Region& region) {
  if (region.block == nullptr && region.bytes_read + region.bytes_written > 0) {
    traffic_ += std::to_string(region.begin) + " " + std::to_string(region.end - region.begin) + " " +
                std::to_string(region.bytes_read) + " " + std::to_string(region.bytes_written) + "\n";
  }
  region.bytes_read = region.bytes_written = 0;
}

std::string Memory::take_traffic() {
  for (const auto& region : regions_) count(*region);
  return std::exchange(traffic_, {});
}

void Memory::begin_run() {
  ++current_epoch;
}

std::string Memory::nearest(uintptr_t address) const {
  const Region* best = nullptr;
  uintptr_t distance = 4096;
  bool behind = false;
  for (const auto& region : regions_) {
    if (address >= region->end && address - region->end < distance) {
      best = region.get(), distance = address - region->end, behind = true;
    }
    if (address < region->begin && region->begin - address < distance) {
      best = region.get(), distance = region->begin - address, behind = false;
    }
    if (address >= region->begin && address < region->end) return "over the end of " + region->name;
  }
  if (best == nullptr) return "of no memory that this call has";
  return std::to_string(distance) + " bytes " + (behind ? "behind " : "before ") + best->name;
}

}  // namespace software
