#include "grid.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace software {

Executor the_executor;

void Executor::set(Schedule schedule, uint64_t seed) {
  schedule_ = schedule;
  seed_ = seed;
}

uint64_t Executor::random() {
  state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
  return state_;
}

// ---- a run

void Executor::run(const std::function<std::vector<Launch*>(Launch*)>& next) {
  state_ = 0x9e3779b97f4a7c15u * (seed_ + 1);
  threads_.clear(), asleep_.clear(), blocks_.clear(), clusters_.clear(), ready_.clear(), fault_.clear();
  idle_fibers_.clear();
  for (const auto& fiber : fibers_) idle_fibers_.push_back(fiber.get());
  idle_memory_.clear();
  for (const auto& block_memory : memories_) idle_memory_.push_back(block_memory.get());
  last_ = 0;
  entry_ = [this] {
    const Launch& launch = *current->block->launch;
    alignas(16) char own[kArguments];  // on the thread's stack, where they are its own
    std::copy(launch.arguments.begin(), launch.arguments.end(), own);
    launch.call(launch.kernel, own);
  };
  std::vector<Launch*> live = next(nullptr);
  for (Launch* launch : live) start_blocks(*launch);
  while (!live.empty()) {
    Thread* thread = pick();
    if (thread == nullptr) {
      if (wake_sleepers()) continue;
      fault_ = "deadlock: " + stuck();
    } else {
      current = thread;
      thread->block->begun = true;
      thread->fiber->resume();
      current = nullptr;
    }
    const bool ended = thread != nullptr && fault_.empty() && thread->fiber->has_ended();
    if (ended) end_thread(*thread);
    if (!fault_.empty()) {
      for (const auto& block : blocks_) memory.remove_of(block.get());
      current = nullptr;
      throw Fault{fault_};
    }
    if (!ended) continue;
    Launch& launch = *thread->block->launch;
    if (launch.running > 0 || !launch.order.empty()) continue;
    live.erase(std::find(live.begin(), live.end(), &launch));
    for (Launch* more : next(&launch)) {
      live.push_back(more);
      start_blocks(*more);
    }
  }
}

void Executor::start_blocks(Launch& launch) {
  if (!launch.started) {
    launch.started = true;
    launch.order.resize(launch.blocks / launch.cluster);
    std::iota(launch.order.rbegin(), launch.order.rend(), 0u);
    if (schedule_ == Schedule::reversed) std::reverse(launch.order.begin(), launch.order.end());
    if (schedule_ == Schedule::random) {
      for (size_t i = launch.order.size(); i > 1; --i) std::swap(launch.order[i - 1], launch.order[random() % i]);
    }
  }
  while (!launch.order.empty() && launch.running + static_cast<int>(launch.cluster) <= launch.resident) {
    const unsigned index = launch.order.back();
    launch.order.pop_back();
    Cluster& cluster = *clusters_.emplace_back(std::make_unique<Cluster>());
    for (unsigned rank = 0; rank < launch.cluster; ++rank) start_block(launch, index * launch.cluster + rank, cluster);
    launch.running += static_cast<int>(launch.cluster);
  }
}

void Executor::start_block(Launch& launch, unsigned index, Cluster& cluster) {
  Block& block = *blocks_.emplace_back(std::make_unique<Block>());
  cluster.blocks.push_back(&block);
  block.launch = &launch, block.cluster = &cluster, block.index = index;
  block.first = static_cast<unsigned>(threads_.size()), block.alive = launch.threads;
  block_memory(block);
  for (unsigned warp = 0; warp * kWarp < launch.threads; ++warp) block.exchanges.push_back(Exchange{warp, ~0u});
  ready_.resize((threads_.size() + launch.threads + 63) / 64);
  for (unsigned i = 0; i < launch.threads; ++i) {
    if (idle_fibers_.empty()) idle_fibers_.push_back(fibers_.emplace_back(std::make_unique<Fiber>()).get());
    Thread& thread = threads_.emplace_back();
    thread.fiber = idle_fibers_.back();
    idle_fibers_.pop_back();
    thread.fiber->begin(&entry_);
    thread.block = &block, thread.index = i;
    thread.clock.thread = static_cast<uint32_t>(threads_.size() - 1);
    thread.clock.others = launch.after;
    wake(thread);
  }
}

void Executor::end_thread(Thread& thread) {
  Block& block = *thread.block;
  Launch& launch = *block.launch;
  unready(thread, State::ended);
  idle_fibers_.push_back(thread.fiber);
  progress();
  --block.alive;
  if (const std::string wrong = leave(thread); !wrong.empty()) fault_ = wrong + ", " + name(thread.clock.thread);
  if (block.alive > 0) return;
  if (std::any_of(block.cluster->blocks.begin(), block.cluster->blocks.end(), [](Block* b) { return b->alive > 0; })) {
    return;
  }
  for (Block* each : block.cluster->blocks) {
    memory.remove_of(each);
    idle_memory_.push_back(std::exchange(each->memory, nullptr));
  }
  launch.running -= static_cast<int>(launch.cluster);
  start_blocks(launch);
}

Knowledge Executor::knowledge_after(const Launch& launch) const {
  Knowledge most = launch.after, last;
  for (const Thread& thread : threads_) {
    if (thread.block->launch != &launch || thread.clock.others == last) continue;
    last = thread.clock.others;
    most = joined(most, last);
  }
  auto all = most == nullptr ? std::make_shared<Time>() : std::make_shared<Time>(*most);
  all->resize(threads_.size());
  for (const Thread& thread : threads_) {
    if (thread.block->launch == &launch) (*all)[thread.clock.thread] = thread.clock.own;
  }
  return all;
}

// ---- shared memory: the library's shared variables, of which a kernel uses its own

void Executor::block_memory(Block& block) {
  constexpr size_t kAlignment = 1024;
  if (idle_memory_.empty()) {
    memories_.push_back(std::make_unique_for_overwrite<char[]>(shared_variables() + kAlignment));
    idle_memory_.push_back(memories_.back().get());
  }
  block.memory = idle_memory_.back();
  idle_memory_.pop_back();
  const auto begin = (reinterpret_cast<uintptr_t>(block.memory) + kAlignment - 1) / kAlignment * kAlignment;
  block.shared = reinterpret_cast<char*>(begin);
}

void Executor::name_shared(size_t offset, size_t bytes, const std::string& name) {
  shared_names_[offset] = {bytes, name};
}

size_t Executor::static_shared(const std::string& kernel) const {
  size_t bytes = 0;
  for (const auto& [offset, variable] : shared_names_) {
    const std::string& name = variable.second;
    if (!kernel.empty() && !name.starts_with("guard") && name.find(kernel) != std::string::npos)
      bytes += variable.first;
  }
  return bytes;
}

Region* Executor::find_shared(uintptr_t address) {
  for (const auto& block : blocks_) {
    const auto begin = reinterpret_cast<uintptr_t>(block->shared);
    if (block->memory == nullptr || address < begin || address >= begin + shared_variables()) continue;
    const auto next = shared_names_.upper_bound(address - begin);
    if (next == shared_names_.begin()) return nullptr;
    const auto& [offset, variable] = *std::prev(next);
    const auto& [size, name] = variable;
    const bool dynamic = name.ends_with("::dynamic_shared");
    const size_t bytes = dynamic ? block->launch->dynamic_shared : size;
    if (address >= begin + offset + bytes) return nullptr;
    // A guard of a variable's initialization, of which CUDA has none: it has been done.
    const bool guard = name.starts_with("guard");
    if (guard) block->shared[offset] = 1;
    const std::string& kernel = block->launch->function->full_name;
    if (!dynamic && name.find(kernel) == std::string::npos) return nullptr;  // another kernel's
    return &memory.add(
        begin + offset, bytes, 4, guard,
        std::string(dynamic ? "dynamic" : "static") + " shared memory of block " + std::to_string(block->index),
        block.get());
  }
  return nullptr;
}

std::string Executor::nearest(uintptr_t address) const {
  for (const auto& block : blocks_) {
    const auto begin = reinterpret_cast<uintptr_t>(block->shared);
    if (block->memory != nullptr && address >= begin && address < begin + shared_variables() + 1024) {
      return "beyond the shared memory of block " + std::to_string(block->index);
    }
  }
  return memory.nearest(address);
}

// ---- who is next

namespace {

// The next bit from `from` on, around the end, upwards or downwards, outside of [skip, skip_end); -1: none.
ptrdiff_t find(const std::vector<uint64_t>& bits, size_t from, bool up, size_t skip, size_t skip_end) {
  const size_t words = bits.size();
  if (words == 0) return -1;
  const auto masked = [&](size_t w) {
    uint64_t word = bits[w];
    if (skip_end > w * 64 && skip < w * 64 + 64) {
      for (size_t i = 0; i < 64; ++i) {
        if (w * 64 + i >= skip && w * 64 + i < skip_end) word &= ~(uint64_t{1} << i);
      }
    }
    return word;
  };
  const size_t at = from / 64 % words, bit = from % 64;
  for (size_t step = 0; step <= words; ++step) {
    const size_t w = up ? (at + step) % words : (at + words - step % words) % words;
    uint64_t word = masked(w);
    const uint64_t above = ~uint64_t{0} << bit, below = ~uint64_t{0} >> (63 - bit);
    if (step == 0) word &= up ? above : below;
    if (word == 0) continue;
    return static_cast<ptrdiff_t>(w * 64) + (up ? __builtin_ctzll(word) : 63 - __builtin_clzll(word));
  }
  return -1;
}

}  // namespace

Thread* Executor::pick() {
  size_t from = 0, skip = 0, skip_end = 0;
  bool up = true;
  const size_t count = threads_.size();
  switch (schedule_) {
    case Schedule::in_order:
      from = last_ + 1;
      break;
    case Schedule::reversed:
      from = last_ + ready_.size() * 64 - 1, up = false;
      break;
    case Schedule::random:
      from = random() % std::max<size_t>(1, count);
      break;
    case Schedule::block_first:
      break;
    case Schedule::held_back: {
      from = last_ + 1;
      const Block& held = *blocks_[seed_ % blocks_.size()];
      skip = held.first, skip_end = held.first + held.launch->threads;
      break;
    }
  }
  ptrdiff_t found = find(ready_, from % std::max<size_t>(1, ready_.size() * 64), up, skip, skip_end);
  if (found < 0 && skip_end > 0) found = find(ready_, 0, true, 0, 0);
  if (found < 0) return nullptr;
  last_ = static_cast<size_t>(found);
  return &threads_[last_];
}

bool Executor::wake_sleepers() {
  if (writes_ == writes_at_sleep_) return false;
  writes_at_sleep_ = writes_;
  for (Thread* thread : asleep_) wake(*thread);
  const bool any = !asleep_.empty();
  asleep_.clear();
  return any;
}

std::string Executor::stuck() const {
  std::map<std::string, std::pair<int, std::string>> places;
  for (const Thread& thread : threads_) {
    if (thread.state == State::ended) continue;
    auto& [count, example] = places[std::string(thread.waits) + " of line " + std::to_string(thread.line)];
    if (count++ == 0) example = name(thread.clock.thread);
  }
  std::string text;
  for (const auto& [place, who] : places) {
    text += (text.empty() ? "" : "; ") + std::to_string(who.first) + " threads wait at " + place + " (as " +
            who.second + ")";
  }
  return text;
}

// ---- the thread that runs

void Executor::unready(Thread& thread, State state) {
  thread.state = state;
  ready_[thread.clock.thread / 64] &= ~(uint64_t{1} << thread.clock.thread % 64);
}

void Executor::suspend(State state, const char* at, int line) {
  Thread& thread = *current;
  thread.waits = at, thread.line = line;
  unready(thread, state);
  thread.fiber->suspend();
}

void Executor::wait(const char* at, int line) {
  suspend(State::waiting, at, line);
}

void Executor::sleep(const char* at, int line) {
  asleep_.push_back(current);
  suspend(State::asleep, at, line);
}

void Executor::wake(Thread& thread) {
  thread.state = State::ready;
  ready_[thread.clock.thread / 64] |= uint64_t{1} << thread.clock.thread % 64;
}

void Executor::may_switch() {
  if (schedule_ == Schedule::random && random() % 4 == 0) current->fiber->suspend();
}

void Executor::fault(const std::string& what) {
  fault_ = what + ", " + name(current->clock.thread);
  while (true) current->fiber->suspend();
}

std::string Executor::name(uint32_t index) const {
  if (index >= threads_.size()) return "an earlier launch";
  const Thread& thread = threads_[index];
  return "thread " + std::to_string(thread.index) + " of block " + std::to_string(thread.block->index) + " of " +
         thread.block->launch->function->name;
}

std::string thread_name(uint32_t thread) {
  return executor().name(thread);
}

}  // namespace software
