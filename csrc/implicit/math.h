// The op implicit (score_implicit_loss) without torch: a call as raw pointers, and the math of a sample and of one
// element, for every device. With x the student's sample, tau and f the x0 predictions of teacher and fake score:
//
//   e = tau - f,  u = f - x,  d = tau - x = e + u
//   mixed = h1 sum e d - alpha h2 sum e^2
//   sid:  loss = w mixed, w = 1 / max(mean |d|, floor) a constant
//   sim:  loss = k^2 mixed / D, D = sqrt(k^2 sum e^2 + c^2), alpha = 1
//
// With p = dloss / d(sum e d) and q = dloss / d(sum e^2), the gradients are
//
//   x: -p e      tau: 2 (p + q) e + p u      f: -(p + 2 q) e - p u
//
// They are of e and u, and so is the sum, since a fake score that has learned the student is near it: where f is near x
// and alpha near 1, terms of e and d cancel.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#pragma once

#include <array>
#include <cmath>

#include "core/affine.h"
#include "core/tensors.h"

namespace fdkernels {

#define FDK_IMPLICIT_KINDS(X) X(sid) X(sim)
enum class ImplicitKind : int8_t { FDK_IMPLICIT_KINDS(FDK_ENUMERATOR) };
constexpr const char* kImplicitKindNames[] = {FDK_IMPLICIT_KINDS(FDK_NAME)};

constexpr int kImplicitInputs = 3;  // student, teacher, fake

struct Implicit {
  int64_t batch, elements;
  Samples inputs[kImplicitInputs];
  ImplicitKind kind;
  double alpha, floor, c;
  Reduction reduction;
  void* gradients[kImplicitInputs];  // contiguous, in their input's dtype; null: not wanted
  bool aligned;                      // CUDA: every vector of every N-sized tensor is aligned to its size

  FDK_HOST_DEVICE bool stores() const {
    return gradients[0] != nullptr || gradients[1] != nullptr || gradients[2] != nullptr;
  }

  // Whether the arithmetic is in double, since an N-sized input is.
  bool is_wide() const {
    for (const Samples& input : inputs) {
      if (input.dtype == DType::f64) return true;
    }
    return false;
  }
};

// Sums over a sample's elements.
struct ImplicitSums {
  double distance = 0;  // |d|
  double square = 0;    // e^2
  double cross = 0;     // e u
};

// A sample's constants.
struct ImplicitConstants {
  double k, h1, h2;
};

// A sample's loss and its slopes, as they enter a batch's sum.
struct ImplicitSlopes {
  double loss, p, q;
};

namespace {

FDK_HOST_DEVICE inline ImplicitSlopes slopes_of(const Implicit& call, const ImplicitSums& sums,
                                                const ImplicitConstants& of) {
  if (!is_finite(sums.distance + sums.square + sums.cross)) return {NAN, NAN, NAN};
  const double mixed = of.h1 * sums.cross + (of.h1 - call.alpha * of.h2) * sums.square;
  if (call.kind == ImplicitKind::sid) {
    const double omega = sums.distance / static_cast<double>(call.elements);
    const double w = 1 / (omega < call.floor ? call.floor : omega);
    return {w * mixed, w * of.h1, -call.alpha * w * of.h2};
  }
  // Of ratios, since k^4 and D^3 may leave double's range where the result does not.
  const double ratio = of.k / ::hypot(of.k * ::sqrt(sums.square), call.c), slope = of.k * ratio;
  return {slope * mixed, slope * of.h1, -slope * (of.h2 + 0.5 * ratio * (ratio * mixed))};
}

// N, and the power of two with which a float16 gradient is stored: an element of sim's is as large as e / |e|.
struct ImplicitDivisors {
  double loss, power;
};

FDK_HOST_DEVICE inline ImplicitDivisors divisors_of(const Implicit& call) {
  const double elements = static_cast<double>(call.elements);
  double n = call.reduction == Reduction::mean ? static_cast<double>(call.batch) : 1.0;
  if (call.kind == ImplicitKind::sim) return {n, float16_power(n * ::sqrt(elements))};
  if (call.reduction != Reduction::sum) n *= elements;
  return {n, float16_power(n)};
}

// The gradient of an input, a e + c u.
FDK_HOST_DEVICE inline Map gradient_of(int input, double p, double q) {
  if (input == 0) return {-p, 0};
  return input == 1 ? Map{2 * (p + q), p} : Map{-(p + 2 * q), -p};
}

// Whether sums in T can be used as they are. They must be finite. In float, the products must also be so large that no
// underflow matters, or reach, the sum of |e|, must be 0: f = tau (a fake score that starts as the teacher).
template <class T, class Sum>
FDK_HOST_DEVICE inline bool products_hold(Sum square, Sum cross, Sum reach) {
  if (!(is_finite(square) && is_finite(cross))) return false;
  return sizeof(T) == sizeof(double) || reach == 0 || (square > Sum(1e-28) && magnitude(cross) > Sum(1e-28));
}

FDK_HOST_DEVICE inline void add_carefully(ImplicitSums& sums, double x, double tau, double f) {
  const double e = tau - f;
  sums.distance += magnitude(tau - x);
  sums.square += e * e;
  sums.cross += e * (f - x);
}

}  // namespace

}  // namespace fdkernels
