// From a call's operands to the compiled kernel that serves it and the Workload that it is planned by. Free of torch
// and CUDA.
#pragma once

#include "core/plan.h"
#include "implicit/math.h"

namespace fdkernels {

// The types that kernels are compiled for: one of all inputs. The last two look types up at run time.
enum class ImplicitLoads : int { bf16, f32, any_f32, any_f64 };

inline ImplicitLoads loads_of(const Implicit& p) {
  if (p.is_wide()) return ImplicitLoads::any_f64;
  const DType dtype = p.inputs[0].dtype;
  if (p.inputs[1].dtype != dtype || p.inputs[2].dtype != dtype || dtype == DType::f16) return ImplicitLoads::any_f32;
  return dtype == DType::bf16 ? ImplicitLoads::bf16 : ImplicitLoads::f32;
}

inline int vector_of(ImplicitLoads loads) {
  return loads == ImplicitLoads::bf16 ? 8 : loads == ImplicitLoads::any_f64 ? 2 : 4;
}

inline Workload workload_of(const Implicit& p, ImplicitLoads loads) {
  Workload work;
  work.batch = p.batch;
  work.elements = p.elements;
  work.vector = vector_of(loads);
  work.arithmetic = 2 * (loads == ImplicitLoads::any_f64 ? 8 : 4);  // e and u
  work.general = loads == ImplicitLoads::any_f32 || loads == ImplicitLoads::any_f64;
  work.read = work.written = work.most_written = 0;
  for (int i = 0; i < kImplicitInputs; ++i) {
    const int size = size_of(p.inputs[i].dtype);
    work.read += size;
    work.most_written += size;
    if (p.gradients[i] != nullptr) work.written += size;
  }
  work.most_read = work.reread = work.read;
  return work;
}

}  // namespace fdkernels
