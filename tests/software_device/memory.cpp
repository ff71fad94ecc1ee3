#include "memory.h"

#include <algorithm>
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
  static Knowledge first, second, both;  // of the last call: a block's threads ask the same one after the other
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

Region::Region(uintptr_t begin, size_t bytes, unsigned grain, bool is_written, std::string name, Block* block)
    : begin(begin),
      end(begin + bytes),
      grain(grain),
      name(std::move(name)),
      block(block),
      written_((bytes + grain - 1) / grain, is_written) {}

void Region::write_all() {
  std::fill(written_.begin(), written_.end(), uint8_t{1});
}

void Region::forget() {
  cells_.clear();
  readers_.clear();
  is_shared_by_blocks = false;
}

std::string Region::check(const Clock& who, uintptr_t address, size_t bytes, Access how) {
  if (epoch_ != current_epoch) {
    forget();
    epoch_ = current_epoch;
  }
  if (cells_.empty()) cells_.resize(written_.size());
  const bool writes = how == Access::write || how == Access::atomic_write;
  const bool reads = !writes || how == Access::atomic_write;
  (writes ? bytes_written : bytes_read) += bytes;
  is_shared_by_blocks = is_shared_by_blocks || (writes && block == nullptr);
  const size_t first = (address - begin) / grain, last = (address + bytes - 1 - begin) / grain;
  for (size_t i = first; i <= last; ++i) {
    if (reads && !written_[i]) return "read of memory that nothing has written";
    if (writes) written_[i] = 1;
    const std::string found = race(who, cells_[i], i, how);
    if (!found.empty()) return found;
  }
  return {};
}

std::string Region::race(const Clock& who, Cell& cell, size_t index, Access how) {
  const bool writes = how == Access::write || how == Access::atomic_write;
  const bool atomic = how == Access::atomic_write || how == Access::atomic_read;
  if (how == Access::constant_read && cell.written != 0) return "read-only load of memory that this launch has written";
  if (writes && cell.constant) return "write to memory that this launch has read by a read-only load";
  const bool both_atomic = atomic && cell.atomic;
  if (cell.written != 0 && !both_atomic && !who.has_seen(cell.writer, cell.written)) {
    return "race: " + std::string(writes ? "write" : "read") + " after a write by " + thread_name(cell.writer);
  }
  if (!writes) {
    if (how == Access::constant_read) cell.constant = true;
    cell.atomic_readers = atomic && (cell.read == 0 || cell.atomic_readers);
    if (cell.read == 0 || (cell.reader != kMany && who.has_seen(cell.reader, cell.read))) {
      cell.reader = who.thread, cell.read = who.own;
      return {};
    }
    auto& readers = readers_[index];
    if (cell.reader != kMany) {
      readers.assign(1, {cell.reader, cell.read});
      cell.reader = kMany;
    }
    if (readers.back().first == who.thread) {
      readers.back().second = who.own;
    } else {
      readers.emplace_back(who.thread, who.own);
    }
    return {};
  }
  if (atomic && cell.atomic_readers) {
    readers_.erase(index);
  } else if (cell.reader == kMany) {
    for (const auto& [thread, when] : readers_[index]) {
      if (!who.has_seen(thread, when)) return "race: write after a read by " + thread_name(thread);
    }
    readers_.erase(index);
  } else if (cell.read != 0 && !who.has_seen(cell.reader, cell.read)) {
    return "race: write after a read by " + thread_name(cell.reader);
  }
  const bool constant = cell.constant;
  cell = {who.thread, who.own, 0, 0, atomic, false, constant};
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
  uintptr_t end = begin + bytes;
  size_t first = after(begin);
  if (first > 0 && regions_[first - 1]->end > begin) --first;
  size_t last = first;
  int users = 1;
  for (; last < regions_.size() && regions_[last]->begin < end; ++last) {
    const Region& other = *regions_[last];
    if (other.begin <= begin && other.end >= end) {  // a part of what is there
      regions_[last]->users += 1;
      if (is_written) regions_[last]->write_all();
      return *regions_[last];
    }
    begin = std::min(begin, other.begin), end = std::max(end, other.end), grain = std::min(grain, other.grain);
    users += other.users;
  }
  for (size_t i = first; i < last; ++i) count(*regions_[i]);
  regions_.erase(regions_.begin() + static_cast<ptrdiff_t>(first), regions_.begin() + static_cast<ptrdiff_t>(last));
  auto region = std::make_unique<Region>(begin, end - begin, grain, is_written, name, block);
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

// What is known of a region's traffic when it goes, or is asked for.
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
