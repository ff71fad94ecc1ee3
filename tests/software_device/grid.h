// Running kernels: threads, warps, blocks, clusters, and which thread runs next.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"

// Whether every access of a kernel is a call. If not, only the stand-ins' accesses are seen; races and reads of memory
// that nothing has written are not.
extern const bool software_sees_accesses;

namespace software {

constexpr unsigned kWarp = 32;
constexpr size_t kArguments = 4096;  // bytes of a kernel's arguments, at most

// A device, as a test describes it.
struct Description {
  int capability = 90;
  int multiprocessors = 4;
  int shared_per_block = 24 << 10, shared_per_multiprocessor = 48 << 10;  // bytes
  int cache = 1 << 20;                                                    // bytes
  int largest_cluster = 16;
  int granted = 0;                           // multiprocessors that the context has; 0: all
  int memory_clock = 1'000'000, bus = 1024;  // kHz, bits
  int threads_per_multiprocessor = 2048, registers_per_multiprocessor = 65536, registers_a_thread = 96;
};

// A kernel on a device, and what its host code has allowed it.
struct Function {
  std::string name = "kernel", full_name;
  int dynamic_shared = 48 << 10;
  bool large_clusters = false;
  bool loaded = false;
  size_t static_shared = 0;
};

struct Cluster;
struct Launch;

// The lanes of a warp that meet. Their values are kept for two rounds, since no lane can be further ahead.
struct Exchange {
  unsigned warp, mask, arrived = 0;
  Site site{};
  Collective kind = Collective::sync;
  std::array<uint64_t, kWarp> values[2] = {};
  unsigned round = 0;
};

struct Thread;

struct Barrier {
  int expected = 0, votes = 0;
  Site site{};                   // of the first thread that arrives
  std::vector<Clock> arrived;    // the threads' clocks, at arrival
  std::vector<Thread*> waiting;  // threads that did not go on
};

constexpr const char* kClusterWait = "a cluster's barrier";

enum class State : uint8_t { ready, waiting, asleep, ended };

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  unsigned index = 0;
  State state = State::ready;
  Clock clock;
  const char* waits = "";  // at what it waits
  Site site{};
  int votes = 0;                 // result of the barrier that it passed last
  unsigned round = 0;            // of the cluster's barrier, at its last arrival
  bool arrived = false;          // at a cluster's barrier, and has not waited yet
  const void* polled = nullptr;  // address of its last atomic load; the value; how often it was the same
  uint64_t found = 0;
  int polls = 0;
};

struct Block {
  Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  unsigned index = 0, first = 0;  // in the grid; its first thread in the executor's list
  unsigned alive = 0;
  char *memory = nullptr, *shared = nullptr;  // its allocation; where its shared variables begin
  Barrier barrier;
  std::unordered_map<int, Barrier> named;
  std::deque<Exchange> exchanges;  // of every whole warp, then of parts of warps as they come
};

struct Cluster {
  std::vector<Block*> blocks;
  unsigned round = 0;
  std::vector<Clock> arrived;  // in this round
  Knowledge knowledge;         // of all that met in the last round
};

struct Launch {
  Function* function = nullptr;
  const void* kernel = nullptr;
  void (*call)(const void* kernel, void* arguments) = nullptr;
  std::vector<char> arguments;
  unsigned blocks = 1, threads = 1, cluster = 1;
  size_t dynamic_shared = 0;
  bool cooperative = false;
  double share = 0;     // of a multiprocessor, per block
  double all = 0;       // multiprocessors of the device
  Knowledge after;      // what its stream had done before
  unsigned held = ~0u;  // the block that is held back

  std::vector<unsigned> order;  // of the clusters that have not started; the next is at the back
  int running = 0;              // running blocks
};

enum class Schedule : int { in_order, reversed, random, block_first, held_back };

// Runs launches that may overlap, one thread at a time.
class Executor {
 public:
  void set(Schedule schedule, uint64_t seed);
  // Calls next() at first, and whenever a launch has ended, to get the launches that may start. Throws Fault.
  void run(const std::function<std::vector<Launch*>(Launch* ended)>& next);
  // What launches after an ended one know.
  Knowledge knowledge_after(const Launch& launch) const;

  Thread* current = nullptr;
  Memory memory;

  uint64_t most_steps = 300'000'000;  // accesses and switches (seconds); a longer run hangs

  // For the running thread.
  void wait(const char* at, Site site);
  void wake(Thread& thread);
  void may_switch();
  void sleep(const char* at, Site site);
  void step() {
    if (++steps_ > most_steps) hang();
  }
  void progress() {
    ++writes_;
  }
  [[noreturn]] void fault(const std::string& what);
  Thread& thread_of(const Block& block, unsigned index) {
    return threads_[block.first + index];
  }
  // Names a shared variable of the kernels by its offset in thread-local memory. Name all, then call place_shared().
  void name_shared(size_t offset, size_t bytes, const std::string& name);
  // Gives each shared variable a place in every block's memory, with gaps between them.
  void place_shared();
  char* shared_address(size_t offset) {
    if (offset >= places_.size() || places_[offset] == 0) fault("a shared variable that has no name (device.py)");
    return current->block->shared + places_[offset];
  }
  // Bytes of a kernel's static shared variables.
  size_t static_shared(const std::string& kernel) const;
  // Makes the shared variable at an address a region; null if there is none.
  Region* find_shared(uintptr_t address);
  // For messages: where an address lies that is in no region.
  std::string nearest(uintptr_t address) const;
  std::string name(uint32_t thread) const;

 private:
  void start(Launch& launch);
  void start_blocks();
  void start_block(Launch& launch, unsigned index, Cluster& cluster);
  void end_thread(Thread& thread);
  void block_memory(Block& block);
  void open_shared(const Block& block) const;
  void unready(Thread& thread, State state);
  void suspend(State state, const char* at, Site site);
  Thread* pick();
  bool wake_sleepers();
  std::string stuck();
  [[noreturn]] void hang();
  uint64_t random();

  Schedule schedule_ = Schedule::in_order;
  uint64_t seed_ = 0, state_ = 1, writes_ = 0, writes_at_sleep_ = 0, steps_ = 0;
  std::vector<Launch*> live_;
  double used_ = 0;  // multiprocessors in use
  std::deque<Thread> threads_;
  std::vector<Thread*> asleep_;
  std::vector<uint64_t> ready_, held_;  // a bit per thread; held_: ready, but runs only if no other is
  size_t last_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_fibers_;
  std::vector<std::unique_ptr<char[]>> memories_;
  std::vector<char*> idle_memory_;
  struct Variable {
    size_t place, bytes;
    std::string name;
  };
  // Bytes of a variable that a block's kernel may touch; 0 if the variable is another kernel's.
  static size_t bytes_in(const Block& block, const Variable& variable);

  std::map<size_t, Variable> variables_;      // by offset
  std::map<size_t, const Variable*> placed_;  // by place
  std::vector<uint32_t> places_;              // by offset
  size_t shared_bytes_ = 0;
  std::function<void()> entry_;
  std::string fault_, asked_;
  bool asks_ = false;  // a resumed thread only says where it is
};

struct Fault {
  std::string text;
};

extern Executor the_executor;
inline Executor& executor() {
  return the_executor;
}
// The running thread.
inline Thread& me() {
  return *executor().current;
}

// A thread ends, and barriers stop waiting for it. Returns what is wrong with that, or nothing.
std::string leave(Thread& thread);
void forget_atomics();
// Whether an address lies in the library itself, as constant tables do.
bool is_constant(const void* address);
// The lines of the sources that have led to this call, the last one first; slow.
std::string callers();

}  // namespace software
