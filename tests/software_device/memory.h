// The device's memory: what may be accessed, what has been written, and by whom, so that no race goes unseen.
//
// Time is a vector clock: thread i's own count goes up whenever it releases (a barrier, an atomic), and it knows
// another thread's count as far as it has acquired it. Two accesses of one address by two threads, one of them a write,
// are a race unless the later thread knows of the earlier access.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "include/software_device.h"

namespace software {

using Time = std::vector<uint32_t>;             // by thread; 0 beyond its end
using Knowledge = std::shared_ptr<const Time>;  // null: nothing

uint32_t known(const Knowledge& of, uint32_t thread);
Knowledge joined(const Knowledge& a, const Knowledge& b);

// The clock of a thread, as its accesses are recorded.
struct Clock {
  uint32_t thread = 0, own = 1;
  Knowledge others;
  Knowledge fenced;   // at the last fence; later relaxed writes release it
  Knowledge pending;  // from relaxed reads; the next fence acquires it

  bool has_seen(uint32_t by, uint32_t when) const {
    return by == thread || known(others, by) >= when;
  }
  Knowledge all() const;  // with its own time
  void acquire(const Knowledge& from) {
    others = joined(others, from);
  }
};

struct Block;

// A thread's name, for messages.
std::string thread_name(uint32_t thread);

// A run of bytes that kernels may touch: a tensor, a variable of a module, a shared variable of a block.
class Region {
 public:
  Region(uintptr_t begin, size_t bytes, unsigned grain, bool is_written, std::string name, Block* block = nullptr);

  bool holds(uintptr_t address, size_t bytes) const {
    return address >= begin && address + bytes <= end;
  }
  // Empty if the access is sound, else what is wrong.
  std::string check(const Clock& who, uintptr_t address, size_t bytes, Access how);
  // Forgets who accessed it, not what was written.
  void forget();
  void mark_written(uintptr_t address, size_t bytes);
  // Copies what is written from a region that becomes a part of this one.
  void take_written(const Region& part);
  // Whether there has been an atomic access since the last plain write.
  bool is_atomic(uintptr_t address) const;

  uintptr_t begin, end;
  unsigned grain;  // bytes whose accesses are recorded together
  std::string name;
  Block* block;   // whose shared memory it is
  int users = 1;  // calls that hold it
  uint64_t bytes_read = 0, bytes_written = 0;
  bool is_shared_by_blocks = false;  // written in this launch: a place where threads may be switched

 private:
  struct Moment {
    uint32_t thread, when;  // when: 0, never
    bool writes;
  };
  // Accesses since the last plain write. Reads by several threads are in `readers_`, atomic accesses in `atomics_`.
  struct Cell {
    Moment write, read;
    bool many_readers, atomic, constant;
  };

  std::string race(const Clock& who, Cell& cell, size_t index, Access how);

  std::vector<Cell> cells_;
  std::vector<uint8_t> written_;  // a flag per byte
  std::unordered_map<size_t, std::vector<Moment>> readers_, atomics_;
  uint64_t epoch_ = 0;
};

// All regions by address. They do not overlap: tensors that share bytes become one.
class Memory {
 public:
  Region* find(uintptr_t address, size_t bytes);
  Region& add(uintptr_t begin, size_t bytes, unsigned grain, bool is_written, const std::string& name,
              Block* block = nullptr);
  void release(uintptr_t begin);  // one user fewer
  void remove_of(const Block* block);
  void begin_run();  // nothing runs, so no earlier access can race
  std::string nearest(uintptr_t address) const;
  std::string take_traffic();
  const std::vector<std::unique_ptr<Region>>& regions() const {
    return regions_;
  }

 private:
  size_t after(uintptr_t address) const;  // index of the first region that begins beyond it

  void count(Region& region);

  std::vector<std::unique_ptr<Region>> regions_;
  std::string traffic_;
  static constexpr size_t kRecent = 64;
  Region* recent_[kRecent] = {};
};

}  // namespace software
