// The arguments of the op implicit as a struct, and the raw operands made from them.
#pragma once

#include "implicit/arguments.h"
#include "implicit/math.h"
#include "torch/operands.h"

namespace fdkernels::ops {

struct ImplicitArguments {
  FDK_ARGUMENTS(FDK_IMPLICIT_ARGUMENTS)
};

// Loss, then gradient and unscale of student, of teacher and of fake.
using ImplicitResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Without its gradients' memory.
inline Implicit implicit_of(const ImplicitArguments& call) {
  const Tensor& student = call.student;
  Implicit p{};
  set_extent(student, "student", &p);
  p.inputs[0] = samples_of(student, student, "student");
  p.inputs[1] = samples_of(call.teacher, student, "teacher");
  p.inputs[2] = samples_of(call.fake, student, "fake");
  set_choice(kImplicitKindNames, call.kind, "kind", &p.kind);
  p.alpha = call.alpha, p.floor = call.floor, p.c = call.c;
  set_choice(kReductionNames, call.reduction, "reduction", &p.reduction);
  return p;
}

// The tensors that the op returns.
struct ImplicitTensors : LossResult {
  GradientResult student, teacher, fake;

  ImplicitTensors(const ImplicitArguments& call, Implicit& p)
      : LossResult(call.student, p.reduction),
        student(call.student, *this, call.with_student_grad),
        teacher(call.teacher, *this, call.with_teacher_grad),
        fake(call.fake, *this, call.with_fake_grad) {
    for (int i = 0; i < kImplicitInputs; ++i) p.gradients[i] = of(i).data();
  }

  const GradientResult& of(int input) const {
    return input == 0 ? student : input == 1 ? teacher : fake;
  }

  ImplicitResults all() const {
    return {loss, student.gradient, student.unscale, teacher.gradient, teacher.unscale, fake.gradient, fake.unscale};
  }
};

}  // namespace fdkernels::ops
