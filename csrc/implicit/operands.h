// The arguments of the op implicit as a struct, and the raw operands made from them.
#pragma once

#include "implicit/arguments.h"
#include "implicit/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct ImplicitArguments {
  FDK_ARGUMENTS(FDK_IMPLICIT_ARGUMENTS)
};

// Loss, then gradient and unscale of student, of teacher and of fake, then nothing.
using ImplicitResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Without its gradients' memory.
inline Implicit implicit_of(const ImplicitArguments& call) {
  const Tensor& student = call.student;
  expect(student.dim() > 0, "student: expected shape (B, ...)");
  Implicit p{};
  p.batch = student.size(0);
  p.elements = elements_per_sample(student);
  expect(p.batch > 0 && p.elements > 0, "student: expected at least one sample and one element a sample");
  p.inputs[0] = samples_of(student, student, "student");
  p.inputs[1] = samples_of(call.teacher, student, "teacher");
  p.inputs[2] = samples_of(call.fake, student, "fake");
  expect(find_name(kImplicitKindNames, call.kind.c_str(), &p.kind), "kind: unknown '", call.kind, "'");
  p.alpha = call.alpha, p.floor = call.floor, p.c = call.c;
  expect(find_name(kReductionNames, call.reduction.c_str(), &p.reduction), "reduction: unknown '", call.reduction, "'");
  return p;
}

// The tensors that the op returns.
struct ImplicitTensors : LossResult {
  GradientResult student, teacher, fake;
  Tensor nothing;

  ImplicitTensors(const ImplicitArguments& call, Implicit& p)
      : LossResult(call.student, p.reduction),
        student(call.student, *this, call.with_student_grad),
        teacher(call.teacher, *this, call.with_teacher_grad),
        fake(call.fake, *this, call.with_fake_grad),
        nothing(new_tensor({0}, ScalarType::Double, call.student)) {
    for (int i = 0; i < kImplicitInputs; ++i) p.gradients[i] = of(i).data();
  }

  const GradientResult& of(int input) const {
    return input == 0 ? student : input == 1 ? teacher : fake;
  }

  ImplicitResults all() const {
    return {loss,          student.gradient, student.unscale, teacher.gradient, teacher.unscale,
            fake.gradient, fake.unscale,     nothing};
  }
};

}  // namespace fdkernels::ops
