// The choice of an instruction set, once per process.
#include "core/cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fdkernels::cpu {

namespace {

Isa choose() {
  const char* forced = std::getenv("FDKERNELS_CPU_ISA");
  const std::string isa = forced == nullptr ? "" : forced;
#if defined(__x86_64__)
  const bool has_v4 = __builtin_cpu_supports("x86-64-v4"), has_v3 = __builtin_cpu_supports("x86-64-v3");
  if (has_v4 && (isa.empty() || isa == "v4")) return Isa::v4;
  if (has_v3 && (isa.empty() || isa == "v3")) return Isa::v3;
#endif
  if (isa.empty() || isa == "baseline") return Isa::baseline;
  throw std::runtime_error("FDKERNELS_CPU_ISA: expected baseline, v3 or v4, as far as this processor goes, got " + isa);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace fdkernels::cpu
