// ucontext makes a stack current for the first time; after that setjmp and longjmp switch, which costs no system call.
// Address sanitizer has to be told of every switch.
#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace software {

struct Fiber::State {
  ucontext_t context;
  jmp_buf inside;
  void* fake_stack = nullptr;
};

namespace {

Fiber* entering = nullptr;
[[maybe_unused]] ucontext_t outside_context;
[[maybe_unused]] jmp_buf outside;
[[maybe_unused]] const void* outside_stack = nullptr;
[[maybe_unused]] size_t outside_size = 0;

}  // namespace

Fiber::Fiber() : state_(new State) {
  void* memory =
      mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) std::abort();
  stack_ = static_cast<char*>(memory) + kGuard;
}

Fiber::~Fiber() {
  munmap(stack_ - kGuard, kGuard + kStack);
  delete state_;
}

void Fiber::begin(const std::function<void()>* body) {
  body_ = body;
  fresh_ = true, ended_ = false;
}

#ifdef __SANITIZE_ADDRESS__

void Fiber::enter() {
  Fiber& self = *entering;
  __sanitizer_finish_switch_fiber(nullptr, &outside_stack, &outside_size);
  (*self.body_)();
  self.ended_ = true;
  __sanitizer_start_switch_fiber(nullptr, outside_stack, outside_size);
  setcontext(&outside_context);
}

void Fiber::resume() {
  if (fresh_) {
    fresh_ = false;
    __asan_unpoison_memory_region(stack_, kStack);
    getcontext(&state_->context);
    state_->context.uc_stack.ss_sp = stack_;
    state_->context.uc_stack.ss_size = kStack;
    state_->context.uc_link = nullptr;
    state_->fake_stack = nullptr;
    makecontext(&state_->context, &Fiber::enter, 0);
  }
  entering = this;
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_, kStack);
  swapcontext(&outside_context, &state_->context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

void Fiber::suspend() {
  __sanitizer_start_switch_fiber(&state_->fake_stack, outside_stack, outside_size);
  swapcontext(&state_->context, &outside_context);
  __sanitizer_finish_switch_fiber(state_->fake_stack, &outside_stack, &outside_size);
}

#else

void Fiber::enter() {
  Fiber& self = *entering;
  (*self.body_)();
  self.ended_ = true;
  _longjmp(outside, 1);
}

void Fiber::resume() {
  if (_setjmp(outside) != 0) return;
  if (!fresh_) _longjmp(state_->inside, 1);
  fresh_ = false;
  getcontext(&state_->context);
  state_->context.uc_stack.ss_sp = stack_;
  state_->context.uc_stack.ss_size = kStack;
  state_->context.uc_link = nullptr;
  makecontext(&state_->context, &Fiber::enter, 0);
  entering = this;
  setcontext(&state_->context);
}

void Fiber::suspend() {
  if (_setjmp(state_->inside) == 0) _longjmp(outside, 1);
}

#endif

}  // namespace software
