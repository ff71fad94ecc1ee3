// What the compiler calls in kernels: -fsanitize=thread for every load and store that is not of a local variable alone,
// __tls_get_addr for every shared variable, which the stand-ins make a thread-local one. libtsan is not linked.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "grid.h"
#include "include/cuda_runtime.h"

namespace software {

namespace {

struct Library {
  uintptr_t begin = ~uintptr_t{0}, end = 0;
  size_t module = 0, variables = 0;  // of thread-local storage: the loader's number, bytes
};

int find_own(dl_phdr_info* info, size_t, void* to) {
  Library found;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type == PT_TLS) found.variables = header.p_memsz;
    if (header.p_type != PT_LOAD || (header.p_flags & PF_W) != 0) continue;
    found.begin = std::min<uintptr_t>(found.begin, info->dlpi_addr + header.p_vaddr);
    found.end = std::max<uintptr_t>(found.end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
  }
  const auto self = reinterpret_cast<uintptr_t>(&find_own);
  if (self < found.begin || self >= found.end) return 0;
  found.module = info->dlpi_tls_modid;
  *static_cast<Library*>(to) = found;
  return 1;
}

const Library& own() {
  static const Library found = [] {
    Library library;
    dl_iterate_phdr(&find_own, &library);
    return library;
  }();
  return found;
}

}  // namespace

bool is_constant(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= own().begin && at < own().end;
}

std::string line_of(const void* code) {
  Dl_info library{};
  if (dladdr(code, &library) == 0) return {};
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase) - 1;
  char text[512];
  std::snprintf(text, sizeof(text), "%zx", static_cast<size_t>(offset));
  const std::string command = "addr2line -e '" + std::string(library.dli_fname) + "' " + text + " 2>/dev/null";
  if (FILE* lines = popen(command.c_str(), "r")) {
    if (fgets(text, sizeof(text), lines) == nullptr) text[0] = 0;
    pclose(lines);
  }
  std::string found = text;
  found = found.substr(0, found.find_first_of(" \n"));
  const size_t csrc = found.rfind("csrc/");
  return csrc == std::string::npos ? found : found.substr(csrc);
}

size_t shared_variables() {
  return own().variables;
}

}  // namespace software

namespace fdkernels::cuda {

// As long as any device's may be; what a launch asks for is checked access by access.
alignas(16) extern thread_local uint4 dynamic_shared[];
alignas(16) thread_local uint4 dynamic_shared[(228 << 10) / sizeof(uint4)];

}  // namespace fdkernels::cuda

using software::Access;

extern "C" {

struct ThreadLocal {
  unsigned long module, offset;
};

void* __tls_get_addr(const ThreadLocal* variable) {
  if (variable->module == software::own().module) return software::executor().current->block->shared + variable->offset;
  using Function = void*(const ThreadLocal*);
  static Function* const others = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, "__tls_get_addr"));
  return others(variable);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

#define SOFTWARE_CALLBACK(name, bytes, how)                                          \
  void __tsan_##name##bytes(void* address) {                                         \
    software::access_from(__builtin_return_address(0), address, bytes, Access::how); \
  }
#define SOFTWARE_ACCESS(bytes)                    \
  SOFTWARE_CALLBACK(read, bytes, read)            \
  SOFTWARE_CALLBACK(write, bytes, write)          \
  SOFTWARE_CALLBACK(volatile_read, bytes, read)   \
  SOFTWARE_CALLBACK(volatile_write, bytes, write) \
  SOFTWARE_CALLBACK(unaligned_read, bytes, read)  \
  SOFTWARE_CALLBACK(unaligned_write, bytes, write)

SOFTWARE_ACCESS(1)
SOFTWARE_ACCESS(2)
SOFTWARE_ACCESS(4)
SOFTWARE_ACCESS(8)
SOFTWARE_ACCESS(16)

void __tsan_read_range(void* address, size_t bytes) {
  software::access_from(__builtin_return_address(0), address, bytes, Access::read);
}
void __tsan_write_range(void* address, size_t bytes) {
  software::access_from(__builtin_return_address(0), address, bytes, Access::write);
}
void __tsan_vptr_update(void*, void*) {}

}  // extern "C"
