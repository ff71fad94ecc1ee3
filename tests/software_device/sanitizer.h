// The sanitizers' runtime, where it is loaded (sanitized.py); elsewhere these are null.
#pragma once

#include <cstddef>

extern "C" {

[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* to, size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** from, size_t* bytes);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* begin, size_t bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* begin, size_t bytes);

}  // extern "C"

namespace software {

// Forbids kernels that are compiled with address sanitizer to touch memory, or allows it.
inline void poison(const void* begin, size_t bytes) {
  if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(begin, bytes);
}
inline void unpoison(const void* begin, size_t bytes) {
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(begin, bytes);
}

}  // namespace software
