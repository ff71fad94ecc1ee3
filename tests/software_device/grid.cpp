#include "grid.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "sanitizer.h"

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
  threads_.clear(), asleep_.clear(), blocks_.clear(), clusters_.clear(), ready_.clear(), held_.clear();
  fault_.clear(), used_ = 0, steps_ = 0;
  idle_fibers_.clear();
  for (const auto& fiber : fibers_) idle_fibers_.push_back(fiber.get());
  idle_memory_.clear();
  for (const auto& block_memory : memories_) idle_memory_.push_back(block_memory.get());
  last_ = 0;
  entry_ = [this] {
    const Launch& launch = *current->block->launch;
    alignas(16) char own[kArguments];  // on the thread's stack: its own copy
    std::copy(launch.arguments.begin(), launch.arguments.end(), own);
    launch.call(launch.kernel, own);
  };
  live_ = next(nullptr);
  for (Launch* launch : live_) start(*launch);
  start_blocks();
  while (!live_.empty()) {
    Thread* thread = pick();
    if (thread == nullptr) {
      if (wake_sleepers()) continue;
      fault_ = "deadlock: " + stuck();
    } else {
      ++steps_;
      current = thread;
      thread->fiber->resume();
      current = nullptr;
    }
    const bool ended = thread != nullptr && fault_.empty() && thread->fiber->has_ended();
    if (ended) end_thread(*thread);
    if (!fault_.empty()) {
      for (const auto& block : blocks_) memory.remove_of(block.get());
      throw Fault{fault_};
    }
    if (!ended) continue;
    Launch& launch = *thread->block->launch;
    if (launch.running > 0 || !launch.order.empty()) continue;
    live_.erase(std::find(live_.begin(), live_.end(), &launch));
    for (Launch* more : next(&launch)) {
      live_.push_back(more);
      start(*more);
    }
    start_blocks();
  }
}

void Executor::start(Launch& launch) {
  launch.order.resize(launch.blocks / launch.cluster);
  std::iota(launch.order.rbegin(), launch.order.rend(), 0u);
  if (schedule_ == Schedule::reversed) std::reverse(launch.order.begin(), launch.order.end());
  if (schedule_ == Schedule::random) {
    for (size_t i = launch.order.size(); i > 1; --i) std::swap(launch.order[i - 1], launch.order[random() % i]);
  }
  if (schedule_ == Schedule::held_back) launch.held = static_cast<unsigned>(seed_ % launch.blocks);
}

// Launches that overlap share the multiprocessors; a cooperative one waits until all its blocks have room.
void Executor::start_blocks() {
  constexpr double kRounding = 1e-9;
  for (Launch* launch : live_) {
    const unsigned together = launch->cooperative ? launch->blocks : launch->cluster;
    while (!launch->order.empty() && used_ + together * launch->share <= launch->all + kRounding) {
      for (unsigned i = 0; i < together; i += launch->cluster) {
        const unsigned index = launch->order.back();
        launch->order.pop_back();
        Cluster& cluster = *clusters_.emplace_back(std::make_unique<Cluster>());
        for (unsigned k = 0; k < launch->cluster; ++k) start_block(*launch, index * launch->cluster + k, cluster);
      }
      launch->running += static_cast<int>(together);
      used_ += together * launch->share;
    }
  }
}

void Executor::start_block(Launch& launch, unsigned index, Cluster& cluster) {
  Block& block = *blocks_.emplace_back(std::make_unique<Block>());
  cluster.blocks.push_back(&block);
  block.launch = &launch, block.cluster = &cluster, block.index = index;
  block.first = static_cast<unsigned>(threads_.size()), block.alive = launch.threads;
  block_memory(block);
  for (unsigned warp = 0; warp * kWarp < launch.threads; ++warp) block.exchanges.push_back(Exchange{warp, ~0u});
  ready_.resize((threads_.size() + launch.threads + 63) / 64), held_.resize(ready_.size());
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
  used_ -= launch.cluster * launch.share;
  start_blocks();
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

namespace {

bool is_dynamic(const std::string& variable) {
  return variable.ends_with("::dynamic_shared");
}

// The guard of a variable's initialization. CUDA has no such initialization, so it counts as done.
bool is_guard(const std::string& variable) {
  return variable.starts_with("guard");
}

}  // namespace

void Executor::name_shared(size_t offset, size_t bytes, const std::string& name) {
  variables_[offset] = {0, bytes, name};
}

void Executor::place_shared() {
  constexpr size_t kApart = 256, kAlignment = 128;  // bytes; nothing may touch what lies between
  size_t end = kApart;
  for (auto& [offset, variable] : variables_) {
    variable.place = end;
    placed_[end] = &variable;
    places_.resize(offset + 1);
    places_[offset] = static_cast<uint32_t>(end);
    end = (end + variable.bytes + kApart + kAlignment - 1) / kAlignment * kAlignment;
  }
  shared_bytes_ = end;
}

void Executor::block_memory(Block& block) {
  constexpr size_t kAlignment = 1024;
  if (idle_memory_.empty()) {
    memories_.push_back(std::make_unique_for_overwrite<char[]>(shared_bytes_ + kAlignment));
    idle_memory_.push_back(memories_.back().get());
  }
  block.memory = idle_memory_.back();
  idle_memory_.pop_back();
  const auto begin = (reinterpret_cast<uintptr_t>(block.memory) + kAlignment - 1) / kAlignment * kAlignment;
  block.shared = reinterpret_cast<char*>(begin);
  if (!software_sees_accesses) open_shared(block);
}

size_t Executor::bytes_in(const Block& block, const Variable& variable) {
  if (is_dynamic(variable.name)) return block.launch->dynamic_shared;
  const bool own = variable.name.find(block.launch->function->full_name) != std::string::npos;
  return own ? variable.bytes : 0;
}

// Tells address sanitizer at once what find_shared() tells access by access.
void Executor::open_shared(const Block& block) const {
  poison(block.shared, shared_bytes_);
  for (const auto& [offset, variable] : variables_) {
    const size_t bytes = bytes_in(block, variable);
    unpoison(block.shared + variable.place, bytes);
    if (bytes > 0 && is_guard(variable.name)) block.shared[variable.place] = 1;
  }
}

size_t Executor::static_shared(const std::string& kernel) const {
  size_t bytes = 0;
  for (const auto& [offset, variable] : variables_) {
    const bool own = !is_guard(variable.name) && variable.name.find(kernel) != std::string::npos;
    if (own) bytes += variable.bytes;
  }
  return bytes;
}

Region* Executor::find_shared(uintptr_t address) {
  for (const auto& block : blocks_) {
    const auto begin = reinterpret_cast<uintptr_t>(block->shared);
    if (block->memory == nullptr || address < begin || address >= begin + shared_bytes_) continue;
    const auto next = placed_.upper_bound(address - begin);
    if (next == placed_.begin()) return nullptr;
    const Variable& variable = *std::prev(next)->second;
    const size_t place = variable.place, bytes = bytes_in(*block, variable);
    if (address >= begin + place + bytes) return nullptr;
    const bool guard = is_guard(variable.name);
    if (guard) block->shared[place] = 1;
    return &memory.add(begin + place, bytes, 4, guard,
                       std::string(is_dynamic(variable.name) ? "dynamic" : "static") + " shared memory of block " +
                           std::to_string(block->index),
                       block.get());
  }
  return nullptr;
}

std::string Executor::nearest(uintptr_t address) const {
  for (const auto& block : blocks_) {
    const auto begin = reinterpret_cast<uintptr_t>(block->shared);
    if (block->memory != nullptr && address >= begin && address < begin + shared_bytes_) {
      return "beyond the shared memory of block " + std::to_string(block->index);
    }
  }
  return memory.nearest(address);
}

// ---- who is next

namespace {

// The next set bit from `from` on, upwards or downwards, around the end; -1: none.
ptrdiff_t find(const std::vector<uint64_t>& bits, size_t from, bool up) {
  const size_t words = bits.size();
  if (words == 0) return -1;
  const size_t at = from % (words * 64) / 64, bit = from % 64;
  const uint64_t above = ~uint64_t{0} << bit, below = ~uint64_t{0} >> (63 - bit);
  for (size_t step = 0; step <= words; ++step) {
    const size_t w = up ? (at + step) % words : (at + words - step % words) % words;
    uint64_t word = bits[w];
    if (step == 0) word &= up ? above : below;
    if (word == 0) continue;
    return static_cast<ptrdiff_t>(w * 64) + (up ? __builtin_ctzll(word) : 63 - __builtin_clzll(word));
  }
  return -1;
}

}  // namespace

Thread* Executor::pick() {
  size_t from = last_ + 1;  // if in order, or if a block is held back
  const bool up = schedule_ != Schedule::reversed;
  if (schedule_ == Schedule::reversed) from = last_ + ready_.size() * 64 - 1;
  if (schedule_ == Schedule::random) from = random() % std::max<size_t>(1, threads_.size());
  if (schedule_ == Schedule::block_first) from = 0;
  ptrdiff_t found = find(ready_, from, up);
  if (found < 0 && schedule_ == Schedule::held_back) found = find(held_, 0, up);
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

std::string Executor::stuck() {
  std::map<std::string, std::pair<int, Thread*>> places;
  for (Thread& thread : threads_) {
    if (thread.state == State::ended) continue;
    auto& [count, example] =
        places[thread.waits + std::string(thread.site.file_name()) + std::to_string(thread.site.line())];
    if (count++ == 0) example = &thread;
  }
  std::string text;
  asks_ = true;
  for (const auto& [place, who] : places) {
    const auto& [count, example] = who;
    current = example;
    example->fiber->resume();
    text += (text.empty() ? "" : "; ") + std::to_string(count) + " threads wait at " + example->waits + ", " + asked_ +
            " (as " + name(example->clock.thread) + ")";
  }
  current = nullptr;
  asks_ = false;
  return text;
}

// ---- the thread that runs

void Executor::unready(Thread& thread, State state) {
  thread.state = state;
  const uint64_t others = ~(uint64_t{1} << thread.clock.thread % 64);
  ready_[thread.clock.thread / 64] &= others;
  held_[thread.clock.thread / 64] &= others;
}

void Executor::suspend(State state, const char* at, Site site) {
  Thread& thread = *current;
  thread.waits = at, thread.site = site;
  unready(thread, state);
  thread.fiber->suspend();
  while (asks_) {
    asked_ = callers();
    thread.fiber->suspend();
  }
}

void Executor::wait(const char* at, Site site) {
  suspend(State::waiting, at, site);
}

void Executor::sleep(const char* at, Site site) {
  asleep_.push_back(current);
  suspend(State::asleep, at, site);
}

void Executor::wake(Thread& thread) {
  thread.state = State::ready;
  auto& bits = thread.block->index == thread.block->launch->held ? held_ : ready_;
  bits[thread.clock.thread / 64] |= uint64_t{1} << thread.clock.thread % 64;
}

void Executor::may_switch() {
  if (schedule_ == Schedule::random && random() % 4 == 0) current->fiber->suspend();
}

void Executor::fault(const std::string& what) {
  fault_ = what + ", " + callers() + ", " + name(current->clock.thread);
  while (true) current->fiber->suspend();
}

void Executor::hang() {
  steps_ = 0;
  fault("livelock: " + std::to_string(most_steps) + " steps, and no end");
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
