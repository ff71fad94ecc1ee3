// The argument list of the op implicit: X(kind, name), in the order of the schema. fdkernels/implicit/arguments.py has
// the same list; a test compares them.
#pragma once

#define FDK_IMPLICIT_ARGUMENTS(X)      \
  X(samples, student)                  \
  X(samples, teacher)                  \
  X(samples, fake)                     \
  X(choice, kind)                      \
  X(number, alpha)                     \
  X(number, floor)                     \
  X(number, c)                         \
  X(per_sample_or_none, score_scale)   \
  X(per_sample_or_none, weight)        \
  X(per_sample_or_none, square_weight) \
  X(number, fixed_score_scale)         \
  X(number, fixed_weight)              \
  X(number, fixed_square_weight)       \
  X(choice, reduction)                 \
  X(flag, with_student_grad)           \
  X(flag, with_teacher_grad)           \
  X(flag, with_fake_grad)
