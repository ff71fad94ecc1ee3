// A function on its own stack, which can be left and entered again.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <functional>

namespace software {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets what to run, from the beginning; what it was doing is dropped.
  void begin(const std::function<void()>* body);
  // Runs it until it suspends or ends. Call this outside of any fiber.
  void resume();
  // Leaves the fiber. Call this inside.
  void suspend();
  bool has_ended() const {
    return ended_;
  }

  bool owns(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - stack_) < kStack;
  }

 private:
  static constexpr size_t kStack = 128 << 10, kGuard = 4096;
  static void enter();

  char* stack_;  // above a page that nothing may touch
  const std::function<void()>* body_ = nullptr;
  bool fresh_ = true, ended_ = false;
  struct State;
  State* state_;
};

}  // namespace software
