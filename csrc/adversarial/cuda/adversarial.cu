// The kernel of the op adversarial: each input is read once, each gradient written once, in one launch.
#include "adversarial/cuda/launch.h"
#include "core/cuda/elementwise.cuh"

namespace fdkernels::cuda {

namespace {

// Takes two elements at a time and looks up their types at run time: the arithmetic in double takes longer than that.
struct AdversarialMath {
  using T = double;
  using Stored = AnyType;
  static constexpr int kVector = kAdversarialVector, kWidth = kVector, kHeld = 1;

  const Adversarial& p;
  const int64_t b;
  const Part& part;
  double total = 0;  // of the terms
  double others_gradient[kWidth];

  __device__ AdversarialMath(const Adversarial& call, int64_t run, const Part& share) : p(call), b(run), part(share) {}

  __device__ static bool stores_vectors() {
    return true;
  }
  __device__ static bool together() {
    return true;
  }

  // Sets both gradients; store() writes them.
  template <int W>
  __device__ void recompute(int at, double (&gradient)[W]) {
    const int64_t i = part.begin + at;
    const bool has_others = p.others.data != nullptr;
    const Words raw = read_vector<Stored, W>(p.logits, b, i);
    Words raw_others{};
    if (has_others) raw_others = read_vector<Stored, W>(p.others, b, i);
    double logits[W], others[W] = {};
    widen<Stored>(raw, p.logits.dtype, logits);
    if (has_others) widen<Stored>(raw_others, p.others.dtype, others);
#pragma unroll
    for (int n = 0; n < W; ++n) {
      const double first = clamped<true>(logits[n], p.bound), second = clamped<true>(others[n], p.bound);
      const bool paired = is_paired(p.kind);
      const Term term = term_of(p.kind, paired ? first - second : first, p.sign);
      Term other{0, -term.slope};
      if (!paired && has_others) other = term_of(p.kind, second, -p.sign);
      total += term.value + other.value;
      // As for hinge, which does not see NaN: right for every kind.
      gradient[n] = gradient_at<AdversarialKind::hinge, true>(logits[n], p.bound, term.slope, p.gradient.by);
      others_gradient[n] =
          gradient_at<AdversarialKind::hinge, true>(others[n], p.bound, other.slope, p.others_gradient.by);
    }
  }

  template <int W>
  __device__ void store(int at, double (&gradient)[W]) const {
    const int64_t to = b * p.elements + part.begin + at;
    if (p.gradient.data != nullptr) write<Stored>(p.gradient.data, p.logits.dtype, to, gradient);
    if (p.others_gradient.data == nullptr) return;
    double second[W];
#pragma unroll
    for (int n = 0; n < W; ++n) second[n] = others_gradient[n];
    write<Stored>(p.others_gradient.data, p.others.dtype, to, second);
  }
};

__device__ inline void report(const AdversarialCall& call, int64_t b, double sum) {
  write_loss(call.loss, call.wide_loss, b, sum / call.p.divisor);
  if (call.unscale != nullptr) call.unscale[b] = call.unscale_value;
  if (call.others_unscale != nullptr) call.others_unscale[b] = call.unscale_value;
}

__global__ void __launch_bounds__(kElementThreads, 2)
    adversarial_kernel(const __grid_constant__ AdversarialCall call, Runs runs) {
  __shared__ Scratch scratch;
  __shared__ bool drawn;
  sum_by_elements(
      call, runs, call.p.reduction == Reduction::none, scratch, drawn,
      [&](int64_t b, const Part& part) { return AdversarialMath(call.p, b, part); },
      [&](int64_t b, double sum) { report(call, b, sum); });
}

const Kernels loaded{adversarial_kernel};

}  // namespace

int64_t adversarial_blocks(const Adversarial& p, int multiprocessors) {
  return p.batch * runs_of(p.batch, p.elements, kAdversarialVector, multiprocessors).blocks;
}

void launch_adversarial(const AdversarialCall& call, int multiprocessors, void* stream) {
  launch_elements("adversarial_kernel", adversarial_kernel, call, kAdversarialVector, multiprocessors, stream);
}

}  // namespace fdkernels::cuda
