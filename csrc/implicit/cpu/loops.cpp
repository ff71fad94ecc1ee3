// The op implicit's loops over elements, in blocks that stay in L1. Each of the two passes reads an input once; the
// second one (apply) finds them in cache.
//
// Keep functions in the unnamed namespace: see core/numbers.h.
#include "implicit/cpu/loops.h"

#include "core/cpu/blocks.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

// The factors of a sample's gradients, of e and u. In float with fused multiply-adds, or in double.
template <class Arithmetic>
struct Gradients {
  Coefficients<Arithmetic> of[kImplicitInputs];
};

// The Loop that core/cpu/blocks.h asks for.
template <class T>
class Loop {
 public:
  using Sums = ImplicitSums;
  using Arithmetic = std::conditional_t<kFusedMultiplyAdd, T, double>;

  Loop(const Implicit& call, int64_t b) : call_(call), b_(b), bf16_(true) {
    for (const Samples& input : call.inputs) bf16_ = bf16_ && input.dtype == DType::bf16;
  }

  void enter(int64_t, int64_t*) {}

  bool sum(int64_t at, int count, Sums& sums) {
    bool sound = false;
    with_inputs(at, count, [&]<class Stored>(const Stored* x, const Stored* tau, const Stored* f) {
      const Totals totals = sum_in_lanes<kLanes<Stored>>(count, [&](int i) {
        const T e = T(number(tau[i])) - T(number(f[i]));
        return Addends{magnitude(T(number(tau[i])) - T(number(x[i]))), e * e, e * (T(number(f[i])) - T(number(x[i])))};
      });
      sums = {totals.first, totals.second, totals.third};
      sound = is_finite(sums.distance) && products_hold<T>(sums.square, sums.cross, 1.0);
      if (sound || sums.square != 0) return;
      bool same = true;
      for (int i = 0; i < count; ++i) same &= number(tau[i]) == number(f[i]);
      sound = same && is_finite(sums.distance);
    });
    return sound;
  }

  void sum_carefully(int64_t at, int count, Sums& sums) {
    sums = {};
    with_inputs(at, count, [&](const auto* x, const auto* tau, const auto* f) {
      for (int i = 0; i < count; ++i) add_carefully(sums, number(x[i]), number(tau[i]), number(f[i]));
    });
  }

  void add(Sums& total, const Sums& sums) const {
    total.distance += sums.distance;
    total.square += sums.square;
    total.cross += sums.cross;
  }

  void store(int64_t at, int count, const Gradients<Arithmetic>& gradients) {
    alignas(64) T e[kBlock], u[kBlock], buffer[kBlock];
    with_inputs(at, count, [&](const auto* x, const auto* tau, const auto* f) {
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        e[i] = T(number(tau[i])) - T(number(f[i]));
        u[i] = T(number(f[i])) - T(number(x[i]));
      }
    });
    for (int input = 0; input < kImplicitInputs; ++input) {
      void* gradient = call_.gradients[input];
      if (gradient == nullptr) continue;
      const DType dtype = call_.inputs[input].dtype;
      const int64_t first = b_ * call_.elements + at;
      const Coefficients<Arithmetic> k = gradients.of[input];
      if (dtype == DType::bf16) {
        store_in(e, u, count, k, static_cast<Bf16*>(gradient) + first);
      } else if (dtype == kNative<T>) {
        store_in(e, u, count, k, static_cast<T*>(gradient) + first);
      } else {
        store_in(e, u, count, k, buffer);
        narrow(buffer, count, gradient, dtype, first);
      }
    }
  }

 private:
  template <class Stored>
  static void store_in(const T* e, const T* u, int count, const Coefficients<Arithmetic>& k, Stored* out) {
    using Wide = decltype(number(Stored{}));
    if (k.c == 0) {
#pragma omp simd
      for (int i = 0; i < count; ++i) put(static_cast<Wide>(k.a * static_cast<Arithmetic>(e[i])), out[i]);
    } else {
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        put(static_cast<Wide>(affine(static_cast<Arithmetic>(e[i]), static_cast<Arithmetic>(u[i]), k)), out[i]);
      }
    }
  }

  // Calls use(x, tau, f) with a block's inputs: bfloat16 as it is stored, all else converted to T.
  template <class Use>
  void with_inputs(int64_t at, int count, const Use& use) {
    const auto* inputs = call_.inputs;
    if (bf16_) {
      const auto stored = [&](const Samples& input) {
        return static_cast<const Bf16*>(input.data) + b_ * input.batch_stride + at;
      };
      use(stored(inputs[0]), stored(inputs[1]), stored(inputs[2]));
    } else {
      use(load(inputs[0], b_, at, count, buffers_[0]), load(inputs[1], b_, at, count, buffers_[1]),
          load(inputs[2], b_, at, count, buffers_[2]));
    }
  }

  const Implicit& call_;
  const int64_t b_;
  bool bf16_;  // all inputs are
  alignas(64) T buffers_[kImplicitInputs][kBlock];
};

template <class T>
void apply_in(const Implicit& call, int64_t b, int64_t begin, int64_t end, double p, double q, double power) {
  Loop<T> loop(call, b);
  Gradients<typename Loop<T>::Arithmetic> gradients;
  for (int input = 0; input < kImplicitInputs; ++input) {
    const double by = call.inputs[input].dtype == DType::f16 ? power : 1.0;
    gradients.of[input] = split<typename Loop<T>::Arithmetic>(gradient_of(input, p * by, q * by));
  }
  store_blocks(loop, begin, end, gradients);
}

template <class T>
ImplicitSums reduce_in(const Implicit& call, int64_t b, int64_t begin, int64_t end) {
  Loop<T> loop(call, b);
  return sum_blocks(loop, begin, end);
}

ImplicitSums reduce(const Implicit& call, int64_t b, int64_t begin, int64_t end) {
  return call.is_wide() ? reduce_in<double>(call, b, begin, end) : reduce_in<float>(call, b, begin, end);
}

void apply(const Implicit& call, int64_t b, int64_t begin, int64_t end, double p, double q, double power) {
  call.is_wide() ? apply_in<double>(call, b, begin, end, p, q, power)
                 : apply_in<float>(call, b, begin, end, p, q, power);
}

}  // namespace

const ImplicitLoops implicit_loops = {reduce, apply};

}  // namespace fdkernels::FDKERNELS_ISA
