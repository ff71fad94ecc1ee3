// The argument list of the op adversarial: X(kind, name), in the order of the schema.
// fdkernels/adversarial/arguments.py has the same list; a test compares them.
#pragma once

#define FDK_ADVERSARIAL_ARGUMENTS(X) \
  X(samples, logits)                 \
  X(samples_or_none, others)         \
  X(choice, kind)                    \
  X(flag, raised)                    \
  X(number, bound)                   \
  X(number, sigma)                   \
  X(choice, reduction)               \
  X(flag, with_grad)                 \
  X(flag, with_others_grad)
