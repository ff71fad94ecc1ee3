// ucontext makes a stack current for the first time; after that setjmp and longjmp switch, which costs no system call.
// Address sanitizer, where it is loaded, is told of every switch.
#include "fiber.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

#include "sanitizer.h"

namespace software {

struct Fiber::State {
  ucontext_t context;
  jmp_buf inside;
  void* fake_stack = nullptr;  // address sanitizer's, while the fiber does not run
};

namespace {

Fiber* entering = nullptr;
jmp_buf outside;
const void* outside_stack = nullptr;
size_t outside_size = 0;
void* outside_fake_stack = nullptr;

// Use libc's own longjmp: address sanitizer's longjmp removes the red zones of the whole stack.
[[noreturn]] void jump(jmp_buf to) {
  using Jump = void(jmp_buf, int);
  static Jump* const libc = reinterpret_cast<Jump*>(dlsym(dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD), "_longjmp"));
  libc(to, 1);
  std::abort();
}

// `fake_stack`: where to keep the fake stack of the stack that is left; null if that stack ends.
void begin_switch(void** fake_stack, const void* to, size_t bytes) {
  if (__sanitizer_start_switch_fiber != nullptr) __sanitizer_start_switch_fiber(fake_stack, to, bytes);
}

void end_switch_inside(void* fake_stack) {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(fake_stack, &outside_stack, &outside_size);
  }
}

void end_switch_outside() {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr);
  }
}

}  // namespace

Fiber::Fiber() : state_(new State) {
  void* memory =
      mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) {
    std::perror("software device: no memory for a thread's stack (vm.max_map_count?)");
    std::abort();
  }
  stack_ = static_cast<char*>(memory) + kGuard;
}

Fiber::~Fiber() {
  munmap(stack_ - kGuard, kGuard + kStack);
  delete state_;
}

void Fiber::begin(const std::function<void()>* body) {
  if (!fresh_ && !ended_) unpoison(stack_, kStack);  // red zones of functions that never returned
  body_ = body;
  fresh_ = true, ended_ = false;
}

void Fiber::enter() {
  Fiber& self = *entering;
  end_switch_inside(nullptr);
  (*self.body_)();
  self.ended_ = true;
  begin_switch(nullptr, outside_stack, outside_size);
  jump(outside);
}

void Fiber::resume() {
  if (_setjmp(outside) != 0) {
    end_switch_outside();
    return;
  }
  begin_switch(&outside_fake_stack, stack_, kStack);
  if (!fresh_) jump(state_->inside);
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
  if (_setjmp(state_->inside) == 0) {
    begin_switch(&state_->fake_stack, outside_stack, outside_size);
    jump(outside);
  }
  end_switch_inside(state_->fake_stack);
}

}  // namespace software
