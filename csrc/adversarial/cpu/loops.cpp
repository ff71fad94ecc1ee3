// The op adversarial's loop over elements: blocks are converted to double, and their gradients back to stored types.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#include "adversarial/cpu/loops.h"

#include "core/cpu/blocks.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

constexpr int kSums = 8;

// The sum of the terms of one input's elements, each on its own; sets their gradients.
template <AdversarialKind kind, bool kClamps>
double sum_of(const double* logits, int count, double sign, double bound, double by, double* gradient) {
  return sum_in_double<kSums>(count, [&](int64_t i) {
    const Term term = term_of(kind, clamped<kClamps>(logits[i], bound), sign);
    gradient[i] = gradient_at<kind, kClamps>(logits[i], bound, term.slope, by);
    return term.value;
  });
}

// The same for pairs of elements.
template <AdversarialKind kind, bool kClamps>
double sum_of_pairs(const Adversarial& p, const double* logits, const double* others, int count, double* gradient,
                    double* others_gradient) {
  const double sign = p.sign, bound = p.bound, by = p.gradient.by, others_by = p.others_gradient.by;
  return sum_in_double<kSums>(count, [&](int64_t i) {
    const Term term = term_of(kind, clamped<kClamps>(logits[i], bound) - clamped<kClamps>(others[i], bound), sign);
    gradient[i] = gradient_at<kind, kClamps>(logits[i], bound, term.slope, by);
    others_gradient[i] = gradient_at<kind, kClamps>(others[i], bound, -term.slope, others_by);
    return term.value;
  });
}

template <AdversarialKind kind, bool kClamps>
double sum(const Adversarial& p, int64_t b, int64_t begin, int64_t end) {
  alignas(64) double buffer[kBlock], others_buffer[kBlock], gradient[kBlock], others_gradient[kBlock];
  double total = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    const double* logits = load(p.logits, b, at, count, buffer);
    const double* others = p.others.data == nullptr ? nullptr : load(p.others, b, at, count, others_buffer);
    if constexpr (is_paired(kind)) {
      total += sum_of_pairs<kind, kClamps>(p, logits, others, count, gradient, others_gradient);
    } else {
      total += sum_of<kind, kClamps>(logits, count, p.sign, p.bound, p.gradient.by, gradient);
      if (others != nullptr) {
        total += sum_of<kind, kClamps>(others, count, -p.sign, p.bound, p.others_gradient.by, others_gradient);
      }
    }
    const auto store = [&](const double* from, const LogitGradient& to, DType dtype) {
      if (to.data != nullptr) narrow(from, count, to.data, dtype, b * p.elements + at);
    };
    store(gradient, p.gradient, p.logits.dtype);
    store(others_gradient, p.others_gradient, p.others.dtype);
  }
  return total;
}

double sum_of_kind(const Adversarial& p, int64_t b, int64_t begin, int64_t end) {
  switch (p.kind) {
#define FDK_CASE(name)                                                               \
  case AdversarialKind::name:                                                        \
    return std::isinf(p.bound) ? sum<AdversarialKind::name, false>(p, b, begin, end) \
                               : sum<AdversarialKind::name, true>(p, b, begin, end);
    FDK_ADVERSARIAL_KINDS(FDK_CASE)
#undef FDK_CASE
  }
  return NAN;
}

}  // namespace

const AdversarialFunction adversarial = sum_of_kind;

}  // namespace fdkernels::FDKERNELS_ISA
