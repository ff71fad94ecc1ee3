// A second op over the skeleton of the CUDA kernels: y = x / |x| of each sample, in float32, and the sum of all |x|. It
// shows that core/cuda/schedules.cuh knows nothing of the op fdiv.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/cuda/launch.h"
#include "core/cuda/schedules.cuh"
#include "core/planning.h"

namespace fdkernels::cuda {

namespace {

struct Input {
  int64_t batch, elements;
  bool aligned;
  Samples x;
  float* y;
  double* norms;  // (batch + 1,): of each sample, then their sum
};

struct Call : Teams {
  Input p;
};

struct Math {
  using T = float;
  struct Sums {
    double squares = 0;
  };
  struct Partial {
    float squares = 0;
  };
  static constexpr int kVector = 4, kWidth = 4, kInFlight = 1, kHeld = 1;

  const Input& p;
  const int64_t b;
  const Part& part;
  const double scale = 0;

  __device__ Math(const Input& input, int64_t sample, const Part& share, double coefficient = 0)
      : p(input), b(sample), part(share), scale(coefficient) {}

  __device__ bool together() const {
    return true;
  }
  template <int W>
  __device__ void gather(int at, float (&values)[W], Partial& partial) const {
    recompute(at, values);
    for (float v : values) partial.squares += v * v;
  }
  __device__ bool add(Sums& total, const Partial& partial) const {
    total.squares += partial.squares;
    return is_finite(partial.squares);
  }
  __device__ bool is_sound(const Sums&, bool held) const {
    return held;
  }
  __device__ void add_carefully(Sums& again, int at) const {
    float value[1];
    recompute(at, value);
    again.squares += static_cast<double>(value[0]) * value[0];
  }
  __device__ Sums merged(const Sums&, bool, const Sums& again) const {
    return again;
  }
  __device__ bool stores_vectors() const {
    return true;
  }
  template <int W>
  __device__ void recompute(int at, float (&values)[W]) const {
    read<float>(p.x, b, part.begin + at, values);
  }
  template <int W>
  __device__ void store(int at, float (&values)[W]) const {
    for (float& v : values) v = static_cast<float>(v * scale);
    write<float>(p.y, DType::f32, b * p.elements + part.begin + at, values);
  }
};

struct NormalizeOp {
  using Call = cuda::Call;
  using Math = cuda::Math;
  static constexpr int kExchanged = 1;
  using Shared = TeamShared<kExchanged>;

  __device__ static void begin(const Call&, const Group&, Shared&) {}
  template <class HasRead>
  __device__ static void ahead(const Call&, const Group&, Shared&, const HasRead&) {}
  __device__ static void to_values(const Math::Sums& sums, double (&values)[1]) {
    values[0] = sums.squares;
  }
  __device__ static void finish(const Call& call, int64_t b, const double (&totals)[1], bool reports, Shared& shared) {
    if (lane() != 0) return;
    shared.coefficient = 1 / ::sqrt(totals[0]);
    if (reports) call.p.norms[b] = ::sqrt(totals[0]);
  }
  __device__ static bool stores(const Call&) {
    return true;
  }
  __device__ static void report(const Call& call, const Group& elements, Shared&) {
    double sum[1] = {0};
    elements.each(call.p.batch, [&](int64_t b) { sum[0] += __ldcg(call.p.norms + b); });
    elements.reduce<Add>(sum);
    if (threadIdx.x == 0) call.p.norms[call.p.batch] = sum[0];
  }
};

__global__ void __launch_bounds__(kMaxThreads, 1) normalize_cluster_kernel(const __grid_constant__ Call call) {
  __shared__ NormalizeOp::Shared shared;
  by_clusters<NormalizeOp>(call, shared);
}

__global__ void __launch_bounds__(kMaxThreads, 1) normalize_grid_kernel(const __grid_constant__ Call call) {
  __shared__ NormalizeOp::Shared shared;
  by_grid<NormalizeOp>(call, shared);
}

std::string error;
constexpr int64_t kMost = 1 << 16, kMostSamples = 64;
__device__ alignas(16) float given[kMost], normalized[kMost];
__device__ double norms[kMostSamples + 1], exchanged[kMostSamples * 128];

void run(const float* x, float* y, double* found, int64_t batch, int64_t elements, int device, const char* text) {
  void* address = nullptr;
  for (void* each : {static_cast<void*>(given), static_cast<void*>(normalized)}) std::fill_n((float*)each, kMost, 0.f);
  cudaGetSymbolAddress(&address, given);
  cudaGetSymbolAddress(&address, normalized);
  cudaGetSymbolAddress(&address, norms);
  cudaGetSymbolAddress(&address, exchanged);
  std::copy_n(x, batch * elements, given);

  Workload work;
  work.batch = batch;
  work.elements = elements;
  work.vector = 4;
  work.general = true;  // one vector in flight
  work.read = work.most_read = work.reread = work.written = work.most_written = 4;
  Allowed allowed;
  if (!parse_allowed(text, &allowed)) throw std::invalid_argument(text);
  const Plan planned = plan(work, limits(device), allowed);
  Call call{};
  call.p = {batch, elements, elements % 4 == 0, {given, DType::f32, elements}, normalized, norms};
  call.exchange = exchanged;
  call.tickets = take_tickets(device, current_stream(device));
  call.follow(planned, work);
  call.prefetch(call.p.x);
  const bool grid = planned.schedule == Schedule::grid;
  if (!start("normalize", grid ? normalize_grid_kernel : normalize_cluster_kernel, call, planned, device, nullptr)) {
    throw std::runtime_error("refused");
  }
  std::copy_n(normalized, batch * elements, y);
  std::copy_n(norms, batch + 1, found);
}

}  // namespace

}  // namespace fdkernels::cuda

// What went wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* normalize(const float* x, float* y, double* norms,
                                                                        int64_t batch, int64_t elements, int device,
                                                                        const char* allowed) {
  try {
    fdkernels::cuda::run(x, y, norms, batch, elements, device, allowed);
  } catch (const std::exception& caught) {
    return (fdkernels::cuda::error = caught.what()).c_str();
  }
  return nullptr;
}
