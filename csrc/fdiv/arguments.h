// The argument lists of the ops fdiv and fdiv_weight: X(kind, name), in the order of the schema.
// fdkernels/fdiv/arguments.py has the same lists; a test compares them. csrc/torch/arguments.h makes a struct from a
// list and fills it from a call.
#pragma once

#define FDK_FDIV_WEIGHT_ARGUMENTS(X) \
  X(logits_or_none, logits)          \
  X(per_sample_or_none, t)           \
  X(state_or_none, ratio_mean)       \
  X(edges_or_none, edges)            \
  X(number, t_min)                   \
  X(number, t_max)                   \
  X(number, decay)                   \
  X(flag, update)                    \
  X(choice, divergence)              \
  X(number, amari_alpha)             \
  X(number, log_ratio_min)           \
  X(number, log_ratio_max)           \
  X(flag, normalize_weight)

#define FDK_FDIV_ARGUMENTS(X)        \
  X(samples, student)                \
  X(samples, teacher)                \
  X(samples, fake)                   \
  X(samples_or_none, teacher_uncond) \
  X(samples_or_none, fake_uncond)    \
  X(number, guidance_scale)          \
  X(number, fake_guidance_scale)     \
  X(samples_or_none, noisy)          \
  X(choice, prediction)              \
  X(table, alpha)                    \
  X(table, sigma)                    \
  X(number, fixed_alpha)             \
  X(number, fixed_sigma)             \
  X(number, sigma_data)              \
  X(per_sample_or_none, weight)      \
  X(flag, dmd_scale)                 \
  X(number, eps)                     \
  X(number, floor)                   \
  X(flag, kept_only)                 \
  X(table, multiplier)               \
  X(mask, mask)                      \
  X(flag, zero_nonfinite)            \
  X(choice, reduction)               \
  X(scalar_or_none, divisor)         \
  X(logits_or_none, gan_logits)      \
  X(number, gan_weight)              \
  X(flag, gan_grad)                  \
  X(flag, with_grad)                 \
  X(flag, with_stats)                \
  FDK_FDIV_WEIGHT_ARGUMENTS(X)
