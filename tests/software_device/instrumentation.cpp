// Functions that compiled kernels call: those of -fsanitize=thread for every load and store that is not of a local
// variable alone; __tls_get_addr for every shared variable, which the stand-ins make thread-local. libtsan is not
// linked.
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "grid.h"
#include "include/cuda_runtime.h"

namespace software {

namespace {

struct Library {
  uintptr_t begin = ~uintptr_t{0}, end = 0;
  size_t module = 0;  // the loader's number of its thread-local storage
};

int find_own(dl_phdr_info* info, size_t, void* to) {
  Library found;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
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

std::string callers() {
  void* frames[32];
  const int count = backtrace(frames, 32);
  Dl_info library{};
  if (dladdr(reinterpret_cast<void*>(&callers), &library) == 0) return {};
  const auto base = reinterpret_cast<uintptr_t>(library.dli_fbase);
  std::string command = "addr2line -i -e '" + std::string(library.dli_fname) + "'";
  for (int i = 0; i < count; ++i) {
    if (!is_constant(frames[i])) continue;
    char address[32];
    std::snprintf(address, sizeof(address), " %zx",
                  static_cast<size_t>(reinterpret_cast<uintptr_t>(frames[i]) - base - 1));
    command += address;
  }
  static std::map<std::string, std::string> asked;
  const auto [at, is_new] = asked.try_emplace(command);
  std::string& found = at->second;
  FILE* lines = is_new ? popen((command + " 2>/dev/null").c_str(), "r") : nullptr;
  if (lines == nullptr) return found;
  for (char text[512]; fgets(text, sizeof(text), lines) != nullptr;) {
    std::string line = text;
    line = line.substr(0, line.find_first_of(" \n"));
    // Keep lines of the sources, not of the stand-ins for CUDA.
    const size_t csrc = line.rfind("csrc/"), planted = line.rfind("planted");
    if (csrc == std::string::npos && planted == std::string::npos) continue;
    found += (found.empty() ? "" : " < ") + line.substr(std::min(csrc, planted));
  }
  pclose(lines);
  return found;
}

}  // namespace software

namespace fdkernels::cuda {

// As long as on any device; each access is checked against what its launch asks for.
alignas(16) extern thread_local uint4 dynamic_shared[];
alignas(16) thread_local uint4 dynamic_shared[(228 << 10) / sizeof(uint4)];

}  // namespace fdkernels::cuda

using software::Access;

extern "C" {

struct ThreadLocal {
  unsigned long module, offset;
};

void* __tls_get_addr(const ThreadLocal* variable) {
  if (variable->module == software::own().module) return software::executor().shared_address(variable->offset);
  using Function = void*(const ThreadLocal*);
  static Function* const others = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, "__tls_get_addr"));
  return others(variable);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

#define SOFTWARE_CALLBACK(name, bytes, how)        \
  void __tsan_##name##bytes(void* address) {       \
    software::access(address, bytes, Access::how); \
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
  software::access(address, bytes, Access::read);
}
void __tsan_write_range(void* address, size_t bytes) {
  software::access(address, bytes, Access::write);
}
void __tsan_vptr_update(void*, void*) {}

}  // extern "C"
