// The ops of fdkernels/fdiv/ops.py on CPU tensors, registered through libtorch's stable ABI.

#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "cpu/fdiv.h"

namespace {

using namespace fdkernels::ops;

template <class Logit>
void mean_of_heads(const Tensor& logits, int64_t heads, std::vector<double>& combined) {
  const Logit* data = static_cast<const Logit*>(logits.data_ptr());
  for (size_t b = 0; b < combined.size(); ++b) {
    double sum = 0;
    for (int64_t k = 0; k < heads; ++k) sum += static_cast<double>(data[static_cast<int64_t>(b) * heads + k]);
    combined[b] = sum / static_cast<double>(heads);
  }
}

// The log ratio of each sample, heads averaged.
std::vector<double> combine(const Tensor& logits, int64_t batch) {
  expect(logits.is_cpu(), "logits: expected a CPU tensor");
  const int64_t heads = heads_of(logits, batch);
  std::vector<double> combined(batch);
  if (logits.is_contiguous() && logits.scalar_type() == ScalarType::Float) {
    mean_of_heads<float>(logits, heads, combined);
  } else {
    mean_of_heads<double>(torch::stable::contiguous(torch::stable::to(logits, ScalarType::Double)), heads, combined);
  }
  return combined;
}

fdkernels::cpu::Threads threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [&](int64_t begin, int64_t end) { body(begin, end, context); });
          }};
}

WeightResults fdiv_weight(const WeightArguments& call) {
  const int64_t batch = call.logits.dim() > 0 ? call.logits.size(0) : 0;
  const auto options = weight_options(call.options);
  const auto state = ratio_state(call.ratio, call.logits, call.t.has_value());
  std::vector<double> L = combine(call.logits, batch), levels;
  if (call.t) levels = to_double(*call.t, batch, "t");
  Tensor weight = new_tensor({batch}, ScalarType::Double, call.logits);
  Tensor stats = new_tensor({fdkernels::kWeightStats}, ScalarType::Double, call.logits);
  fdkernels::fdiv_weight(batch, L.data(), call.t ? levels.data() : nullptr, state, options,
                         static_cast<double*>(weight.data_ptr()), static_cast<double*>(stats.data_ptr()));
  return {weight, stats};
}

FdivResults fdiv(const FdivArguments& call) {
  fdkernels::Problem p = problem(call);
  const auto options = weight_options(call.options);
  const auto state = ratio_state(call.ratio, call.student, call.t.has_value());
  std::vector<double> L, h(p.batch, 1.0), levels;
  if (call.logits) L = combine(*call.logits, p.batch);
  if (call.weight) h = to_double(*call.weight, p.batch, "weight");
  if (call.t) levels = to_double(*call.t, p.batch, "t");

  Outputs out(call);
  double given_stats[fdkernels::kStats];
  double* stats = call.with_stats ? static_cast<double*>(out.stats.data_ptr()) : given_stats;
  if (call.logits) {
    fdkernels::fdiv_weight(p.batch, L.data(), call.t ? levels.data() : nullptr, state, options, h.data(), stats);
  } else {
    for (int64_t b = 0; call.t && b < p.batch; ++b) {
      if (!std::isfinite(levels[b])) h[b] = std::numeric_limits<double>::quiet_NaN();
    }
    fdkernels::given_weight_stats(p.batch, h.data(), stats);
  }
  if (call.with_stats) std::copy(h.begin(), h.end(), stats + fdkernels::kStats);
  p.weight = h.data();
  p.gradient = call.with_grad ? out.gradient.data_ptr() : nullptr;
  std::vector<double> losses(out.per_sample ? p.batch : 1);
  fdkernels::cpu::fdiv(p, host_divisor(call), threads(), losses.data(),
                       out.scaled ? static_cast<float*>(out.unscale.data_ptr()) : nullptr,
                       call.with_stats ? stats : nullptr);
  for (size_t b = 0; b < losses.size(); ++b) {
    if (out.is_double) {
      static_cast<double*>(out.loss.data_ptr())[b] = losses[b];
    } else {
      static_cast<float*>(out.loss.data_ptr())[b] = static_cast<float>(losses[b]);
    }
  }
  return out.results();
}

// upstream * unscale, for the whole batch or per sample.
void scale_into(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out) {
  const bool per_sample = is_per_sample(gradient, upstream, unscale, out);
  const int64_t batch = gradient.size(0), count = per_sample ? batch : 1;
  std::vector<double> factor = to_double(upstream, count, "upstream");
  if (unscale.numel() > 0) {
    const std::vector<double> power = to_double(unscale, count, "unscale");
    for (int64_t b = 0; b < count; ++b) factor[b] *= power[b];
  }
  fdkernels::cpu::scale_gradient(gradient.data_ptr(), dtype_of(gradient, "gradient"), batch,
                                 elements_per_sample(gradient), factor.data(), per_sample, out.data_ptr(), threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("fdiv_native", TORCH_BOX((&fdiv_op<&fdiv>)));
  m.impl("fdiv_weight_native", TORCH_BOX((&fdiv_weight_op<&fdiv_weight>)));
  m.impl("fdiv_backward_native", TORCH_BOX(&fdiv_backward_op<&scale_into>));
  m.impl("fdiv_backward_native_", TORCH_BOX(&fdiv_backward_in_place_op<&scale_into>));
}
