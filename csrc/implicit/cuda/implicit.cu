// The kernels of the op implicit (score_implicit_loss): from samples to the loss and the gradients of student, teacher
// and fake score in one launch.
//
// core/cuda/schedules.cuh moves the data: a team of blocks loads a sample once, and holds e = tau - f and u = f - x in
// shared memory until the sample's sums are known. Bytes per element: 12 in bfloat16, 24 in float32, while a sample
// fits. implicit/math.h has the math.
#include "core/cuda/launch.h"
#include "core/cuda/schedules.cuh"
#include "implicit/cuda/launch.h"

namespace fdkernels::cuda {

namespace {

// A sample's slopes, divided by N, and the power of a float16 gradient.
struct Slopes {
  double p, q, power;
};

template <class Ty>
struct ImplicitMath {
  using T = typename Ty::T;
  using Stored = typename Ty::Student;
  using Sums = ImplicitSums;

  struct Partial {
    T distance = 0, square = 0, cross = 0;
    T reach = 0;  // sum of |e|
  };

  static constexpr bool kTyped = !std::is_same_v<Stored, AnyType>;
  static constexpr int kVector = fdkernels::kVector<Ty>;
  static constexpr int kWidth = kVector;
  static constexpr int kInFlight = kTyped ? 2 : 1;
  static constexpr int kHeld = 2;  // e and u

  const Implicit& p;
  const int64_t b;
  const Part& part;
  Coefficients<T> of[kImplicitInputs];  // of the gradients, for a scatter

  // For a gather.
  __device__ ImplicitMath(const Implicit& call, int64_t sample, const Part& share) : p(call), b(sample), part(share) {}

  // For a scatter.
  __device__ ImplicitMath(const Implicit& call, int64_t sample, const Part& share, const Slopes& slopes)
      : ImplicitMath(call, sample, share) {
#pragma unroll
    for (int i = 0; i < kImplicitInputs; ++i) {
      const double by = p.inputs[i].dtype == DType::f16 ? slopes.power : 1;
      of[i] = split<T>(gradient_of(i, slopes.p * by, slopes.q * by));
    }
  }

  __device__ static bool together() {
    return kWidth > 1;
  }
  __device__ static bool stores_vectors() {
    return true;
  }

  template <int W>
  __device__ Words read_input(int input, int at) const {
    return read_vector<Stored, W>(p.inputs[input], b, part.begin + at);
  }

  // e and u of W elements, and with `partial` their sums.
  template <int W>
  __device__ void differences(const Words (&raw)[kImplicitInputs], T (&values)[2 * W], Partial* partial) const {
    T x[W], tau[W], f[W];
    widen<Stored>(raw[0], p.inputs[0].dtype, x);
    widen<Stored>(raw[1], p.inputs[1].dtype, tau);
    widen<Stored>(raw[2], p.inputs[2].dtype, f);
#pragma unroll
    for (int n = 0; n < W; ++n) {
      const T e = tau[n] - f[n], u = f[n] - x[n];
      values[n] = e, values[W + n] = u;
      if (partial == nullptr) continue;
      partial->distance += magnitude(tau[n] - x[n]);
      partial->square += e * e;
      partial->cross += e * u;
      partial->reach += magnitude(e);
    }
  }

  template <int W>
  __device__ void load(int at, T (&values)[2 * W], Partial* partial) const {
    const Words raw[kImplicitInputs] = {read_input<W>(0, at), read_input<W>(1, at), read_input<W>(2, at)};
    differences<W>(raw, values, partial);
  }

  // ---- sums

  template <int W>
  __device__ void gather(int at, T (&values)[2 * W], Partial& partial) const {
    load<W>(at, values, &partial);
  }

  // All loads come before the first use.
  template <int kTogether>
  __device__ void gather_vectors(int v, Words* hold, Partial& partial) const {
    constexpr int V = kVector;
    Words raw[kTogether][kImplicitInputs];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
#pragma unroll
      for (int i = 0; i < kImplicitInputs; ++i) raw[k][i] = read_input<V>(i, (v + k * part.threads) * V);
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      T values[2 * V];
      differences<V>(raw[k], values, &partial);
      const int w = v + k * part.threads;
      if (w < part.held) keep_each<V, kHeld>(hold, part.held, w * V, values);
    }
  }

  __device__ bool add(Sums& total, const Partial& partial) const {
    total.distance += partial.distance;
    total.square += partial.square;
    total.cross += partial.cross;
    return products_hold<T>(partial.square, partial.cross, partial.reach);
  }

  __device__ bool is_sound(const Sums& total, bool held) const {
    return held && is_finite(total.distance);
  }

  __device__ void add_carefully(Sums& again, int at) const {
    T x[1], tau[1], f[1];
    widen<Stored>(read_input<1>(0, at), p.inputs[0].dtype, x);
    widen<Stored>(read_input<1>(1, at), p.inputs[1].dtype, tau);
    widen<Stored>(read_input<1>(2, at), p.inputs[2].dtype, f);
    fdkernels::add_carefully(again, x[0], tau[0], f[0]);
  }

  __device__ Sums merged(const Sums&, bool, const Sums& again) const {
    return again;
  }

  // ---- the gradients

  template <int W>
  __device__ void recompute(int at, T (&values)[2 * W]) const {
    load<W>(at, values, nullptr);
  }

  template <int W>
  __device__ void store(int at, const T (&values)[2 * W]) const {
    const int64_t to = b * p.elements + part.begin + at;
    T gradient[W];
#pragma unroll
    for (int i = 0; i < kImplicitInputs; ++i) {
      if (p.gradients[i] == nullptr) continue;
#pragma unroll
      for (int n = 0; n < W; ++n) {
        gradient[n] = i == 0 ? of[0].a * values[n] : affine(values[n], values[W + n], of[i]);
      }
      write<Stored>(p.gradients[i], p.inputs[i].dtype, to, gradient);
    }
  }
};

__device__ inline double constant_of(const Constant& constant, int64_t b) {
  return constant.values.data == nullptr ? constant.fixed : real_at(constant.values, b);
}

// Of the batch, or of sample b.
__device__ inline void write_loss(const ImplicitCall& call, int64_t b, double loss, const ImplicitDivisors& divisors) {
  if (call.wide_loss) {
    static_cast<double*>(call.loss)[b] = loss / divisors.loss;
  } else {
    static_cast<float*>(call.loss)[b] = static_cast<float>(loss / divisors.loss);
  }
#pragma unroll
  for (int i = 0; i < kImplicitInputs; ++i) {
    if (call.unscales[i] != nullptr) call.unscales[i][b] = static_cast<float>(1 / divisors.power);
  }
}

template <class Ty>
struct ImplicitOp {
  using Call = ImplicitCall;
  using Math = ImplicitMath<Ty>;
  static constexpr int kExchanged = kImplicitExchanged;
  using Shared = TeamShared<kExchanged, Slopes>;

  __device__ static void begin(const Call&, const Group&, Shared&) {}

  template <class HasRead>
  __device__ static void ahead(const Call&, const Group&, Shared&, const HasRead&) {}

  __device__ static void to_values(const ImplicitSums& sums, double (&values)[kExchanged]) {
    values[0] = sums.distance, values[1] = sums.square, values[2] = sums.cross, values[3] = 0;
  }

  __device__ static void finish(const Call& call, int64_t b, const double (&totals)[kExchanged], bool reports,
                                Shared& shared) {
    if (lane() != 0) return;
    const ImplicitConstants of{constant_of(call.k, b), constant_of(call.h1, b), constant_of(call.h2, b)};
    const ImplicitSlopes slopes = slopes_of(call.p, {totals[0], totals[1], totals[2]}, of);
    const ImplicitDivisors divisors = divisors_of(call.p);
    shared.coefficient = {slopes.p / divisors.loss, slopes.q / divisors.loss, divisors.power};
    if (!reports) return;
    call.records[b] = slopes.loss;
    if (call.p.reduction == Reduction::none) write_loss(call, b, slopes.loss, divisors);
  }

  __device__ static bool stores(const Call& call) {
    return call.p.stores();
  }

  __device__ static void report(const Call& call, const Group& elements, Shared&) {
    if (call.p.reduction == Reduction::none) return;
    double total[1] = {0};
    elements.each(call.p.batch, [&](int64_t b) { total[0] += __ldcg(call.records + b); });
    elements.reduce<Add>(total);
    if (threadIdx.x == 0) write_loss(call, 0, total[0], divisors_of(call.p));
  }
};

template <class Ty>
constexpr bool kGeneral = std::is_same_v<typename Ty::Student, AnyType>;

template <class Ty>
__global__ void __launch_bounds__(most_threads(kGeneral<Ty>), 1)
    implicit_cluster_kernel(const __grid_constant__ ImplicitCall call) {
  __shared__ typename ImplicitOp<Ty>::Shared shared;
  by_clusters<ImplicitOp<Ty>>(call, shared);
}

template <class Ty>
__global__ void __launch_bounds__(kMaxThreads, 1) implicit_grid_kernel(const __grid_constant__ ImplicitCall call) {
  __shared__ typename ImplicitOp<Ty>::Shared shared;
  by_grid<ImplicitOp<Ty>>(call, shared);
}

static_assert(sizeof(TeamShared<kImplicitExchanged, Slopes>) <= kStaticShared);

using Kernel = void (*)(ImplicitCall);

template <class Ty>
Kernel kernel_of(Schedule schedule) {
  return schedule == Schedule::grid ? implicit_grid_kernel<Ty> : implicit_cluster_kernel<Ty>;
}

Kernel kernel_of(Schedule schedule, ImplicitLoads loads) {
  switch (loads) {
    case ImplicitLoads::bf16:
      return kernel_of<One<Bf16, float>>(schedule);
    case ImplicitLoads::f32:
      return kernel_of<One<float, float>>(schedule);
    case ImplicitLoads::any_f32:
      return kernel_of<One<AnyType, float>>(schedule);
    case ImplicitLoads::any_f64:
      return kernel_of<One<AnyType, double>>(schedule);
  }
  return nullptr;
}

}  // namespace

bool start(const ImplicitCall& call, const Plan& plan, ImplicitLoads loads, int device, void* stream) {
  const bool grid = plan.schedule == Schedule::grid;
  return start(grid ? "implicit_grid_kernel" : "implicit_cluster_kernel", kernel_of(plan.schedule, loads), call, plan,
               device, stream);
}

}  // namespace fdkernels::cuda
