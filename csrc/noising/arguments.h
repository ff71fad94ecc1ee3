// The argument list of the op noising: X(kind, name), in the order of the schema. fdkernels/noising/arguments.py has
// the same list; a test compares them.
#pragma once

#define FDK_NOISING_ARGUMENTS(X) \
  X(samples, x)                  \
  X(samples_or_none, noise)      \
  X(seed_or_none, seed)          \
  X(choice, result)              \
  X(choice, prediction)          \
  X(table, alpha)                \
  X(table, sigma)                \
  X(number, fixed_alpha)         \
  X(number, fixed_sigma)         \
  X(number, sigma_data)          \
  X(flag, with_noise)
