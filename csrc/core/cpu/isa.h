// The instruction set that serves this processor: some files are compiled once for each (CMakeLists.txt).
#pragma once

namespace fdkernels::cpu {

enum class Isa { baseline, v3, v4 };

// The widest instruction set that this processor runs. FDKERNELS_CPU_ISA=baseline|v3|v4 forces one, for tests.
Isa isa();

template <class Kernels>
const Kernels& by_isa(const Kernels& baseline, const Kernels& v3, const Kernels& v4) {
  return isa() == Isa::v4 ? v4 : isa() == Isa::v3 ? v3 : baseline;
}

}  // namespace fdkernels::cpu
