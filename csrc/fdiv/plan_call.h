// From a call's operands to the compiled kernel that serves it and the Workload that it is planned by. Free of torch
// and CUDA, so that the launcher and `fdkernels._core.plan` agree. Data pointers are only compared with null.
#pragma once

#include "core/plan.h"
#include "fdiv/problem.h"

namespace fdkernels {

// The type combinations that kernels are compiled for: one type, or the student's and the predictions'. The last two
// look types up at run time.
enum class Loads : int { bf16, f16, f32, bf16_f32, f16_f32, any_f32, any_f64 };
constexpr int kLoads = 7;

inline Loads loads_of(const Problem& p) {
  if (p.is_wide()) return Loads::any_f64;
  const DType student = p.student.dtype, prediction = p.teacher.dtype;
  bool uniform = p.noisy.data == nullptr || p.noisy.dtype == student;
  for (const Samples* samples : {&p.fake, &p.teacher_uncond, &p.fake_uncond}) {
    uniform = uniform && (samples->data == nullptr || samples->dtype == prediction);
  }
  if (uniform && student == prediction) {
    return student == DType::bf16 ? Loads::bf16 : student == DType::f16 ? Loads::f16 : Loads::f32;
  }
  if (uniform && prediction == DType::f32) return student == DType::bf16 ? Loads::bf16_f32 : Loads::f16_f32;
  return Loads::any_f32;
}

inline bool is_general(const Problem& p, Loads loads) {
  return loads == Loads::any_f32 || loads == Loads::any_f64 || p.noisy.data != nullptr ||
         p.teacher_uncond.data != nullptr || p.fake_uncond.data != nullptr || p.is_raw() || p.mask.data != nullptr ||
         (p.multiplier.data != nullptr && p.multiplier.entries > 1);
}

inline int vector_of(Loads loads) {
  return loads == Loads::bf16 || loads == Loads::f16 ? 8 : loads == Loads::any_f64 ? 2 : 4;
}

inline Workload workload_of(const Problem& p, Loads loads, bool general, int64_t heads, int64_t bins, bool counted) {
  Workload work;
  work.batch = p.batch;
  work.elements = p.elements;
  work.vector = vector_of(loads);
  work.arithmetic = loads == Loads::any_f64 ? 8 : 4;
  work.general = general;
  work.reread = 0;
  for (const Samples* samples : {&p.teacher, &p.fake, &p.teacher_uncond, &p.fake_uncond}) {
    if (samples->data != nullptr) work.reread += size_of(samples->dtype);
  }
  const int student = size_of(p.student.dtype), noisy = p.noisy.data != nullptr ? size_of(p.noisy.dtype) : 0;
  work.most_read = work.reread + student + noisy;
  work.most_written = student;
  work.read = p.dmd_scale || p.with_stats ? work.most_read : work.reread;
  work.written = p.gradient != nullptr ? student : 0;
  work.heads = heads;
  work.bins = bins;
  if (p.mask.data != nullptr && p.reduction == Reduction::mean && !counted) {
    work.mask_entries = p.mask.entries * (p.mask.batch_stride == 0 ? 1 : p.batch);
  }
  return work;
}

}  // namespace fdkernels
