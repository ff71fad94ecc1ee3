// The argument list of the op denoising: X(kind, name), in the order of the schema. fdkernels/denoising/arguments.py
// has the same list; a test compares them.
#pragma once

#define FDK_DENOISING_ARGUMENTS(X) \
  X(samples, pred)                 \
  X(samples, x0)                   \
  X(samples, noise)                \
  X(choice, prediction)            \
  X(table, alpha)                  \
  X(table, sigma)                  \
  X(number, fixed_alpha)           \
  X(number, fixed_sigma)           \
  X(number, sigma_data)            \
  X(table, weight)                 \
  X(choice, reduction)             \
  X(scalar_or_none, divisor)       \
  X(flag, with_grad)
