// The ops of fdkernels/fdiv/ops.py on CPU tensors, registered through libtorch's stable ABI. Python has validated a
// public call; what is checked here keeps a direct call of a raw op from reading past a tensor.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/fdiv.h"

namespace {

using fdkernels::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, name, ": expected a floating dtype");
  }
}

int64_t elements_per_sample(const Tensor& tensor) {
  int64_t elements = 1;
  for (int64_t d = 1; d < tensor.dim(); ++d) elements *= tensor.size(d);
  return elements;
}

fdkernels::Images images(const Tensor& tensor, const Tensor& student, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a CPU tensor");
  STD_TORCH_CHECK(tensor.dim() == student.dim(), name, ": expected the rank of student");
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    STD_TORCH_CHECK(tensor.size(d) == student.size(d), name, ": expected the shape of student");
    STD_TORCH_CHECK(d == 0 || tensor.size(d) == 1 || tensor.stride(d) == expected, name, ": expected dense samples");
    if (d > 0) expected *= tensor.size(d);
  }
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0)};
}

fdkernels::Images images(const OptionalTensor& tensor, const Tensor& student, const char* name) {
  return tensor ? images(*tensor, student, name) : fdkernels::Images{};
}

fdkernels::Table table(const OptionalTensor& tensor, int64_t inner, int64_t batch, int64_t elements, bool is_mask,
                       const char* name) {
  if (!tensor) return {};
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->dim() == 2, name, ": expected a (B or 1, R) CPU tensor");
  const int64_t rows = tensor->size(0), entries = tensor->size(1);
  STD_TORCH_CHECK(rows == batch || rows == 1, name, ": expected one row, or one per sample");
  STD_TORCH_CHECK(entries == 1 || tensor->stride(1) == 1, name, ": expected dense rows");
  STD_TORCH_CHECK(
      inner > 0 && inner <= elements && entries > 0 && entries <= elements / inner && elements % (entries * inner) == 0,
      name, ": entries and their runs do not tile a sample");
  const ScalarType dtype = tensor->scalar_type();
  STD_TORCH_CHECK(is_mask ? dtype == ScalarType::Bool : (dtype == ScalarType::Float || dtype == ScalarType::Double),
                  name, is_mask ? ": expected bool" : ": expected float32 or float64");
  const DType stored = dtype == ScalarType::Double ? DType::f64 : DType::f32;
  return {tensor->data_ptr(), stored, rows == 1 ? 0 : tensor->stride(0), entries, inner};
}

// A new contiguous CPU tensor. The C shim costs a fraction of torch::stable::empty, which goes through the dispatcher.
Tensor new_tensor(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes[d + 1];
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         static_cast<int32_t>(dtype), aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

// A real (B,) or () tensor in double.
std::vector<double> to_double(const Tensor& tensor, int64_t count, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() <= 1 && tensor.numel() == count, name,
                  ": expected a CPU tensor with one value per sample");
  const ScalarType dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float && tensor.is_contiguous()) {
    const float* data = static_cast<const float*>(tensor.data_ptr());
    return std::vector<double>(data, data + count);
  }
  const Tensor wide = torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Double));
  const double* data = static_cast<const double*>(wide.data_ptr());
  return std::vector<double>(data, data + count);
}

template <class Logit>
void mean_of_heads(const Tensor& logits, std::vector<double>& combined) {
  const Logit* data = static_cast<const Logit*>(logits.data_ptr());
  const int64_t heads = logits.dim() == 2 ? logits.size(1) : 1;
  for (size_t b = 0; b < combined.size(); ++b) {
    double sum = 0;
    for (int64_t k = 0; k < heads; ++k) sum += static_cast<double>(data[static_cast<int64_t>(b) * heads + k]);
    combined[b] = sum / static_cast<double>(heads);
  }
}

// The log ratio of each sample, heads averaged.
std::vector<double> combine(const Tensor& logits, int64_t batch) {
  STD_TORCH_CHECK(logits.is_cpu() && (logits.dim() == 1 || logits.dim() == 2) && logits.size(0) == batch,
                  "logits: expected a CPU tensor of shape (B,) or (B, heads)");
  std::vector<double> combined(batch);
  const ScalarType dtype = logits.scalar_type();
  if (logits.is_contiguous() && dtype == ScalarType::Float) {
    mean_of_heads<float>(logits, combined);
  } else {
    mean_of_heads<double>(torch::stable::contiguous(torch::stable::to(logits, ScalarType::Double)), combined);
  }
  return combined;
}

struct RatioArguments {
  const OptionalTensor &mean, &edges;
  double t_min, t_max, decay;
  bool update;
};

fdkernels::RatioState ratio_state(const RatioArguments& ratio, bool has_t) {
  if (!ratio.mean) return {nullptr, 0, nullptr, 0, 1, 0, false};
  const Tensor& mean = *ratio.mean;
  STD_TORCH_CHECK(has_t, "t: expected beside ratio_mean");
  STD_TORCH_CHECK(mean.is_cpu() && mean.dim() == 1 && mean.size(0) > 0 && mean.is_contiguous() &&
                      mean.scalar_type() == ScalarType::Float,
                  "ratio_mean: expected a contiguous float32 (bins,) CPU tensor");
  const double* edges = nullptr;
  if (ratio.edges) {
    STD_TORCH_CHECK(ratio.edges->is_cpu() && ratio.edges->dim() == 1 && ratio.edges->size(0) == mean.size(0) - 1 &&
                        ratio.edges->is_contiguous() && ratio.edges->scalar_type() == ScalarType::Double,
                    "edges: expected a contiguous float64 (bins - 1,) CPU tensor");
    // Not null for a single bin, whose edges are empty.
    static const double no_edges = 0;
    edges = mean.size(0) > 1 ? static_cast<const double*>(ratio.edges->data_ptr()) : &no_edges;
  }
  return {
      static_cast<float*>(mean.data_ptr()), mean.size(0), edges, ratio.t_min, ratio.t_max, ratio.decay, ratio.update};
}

fdkernels::WeightOptions weight_options(const std::string& divergence, double alpha, double log_ratio_min,
                                        double log_ratio_max, bool normalize) {
  fdkernels::WeightOptions options{fdkernels::Divergence::rkl, alpha, log_ratio_min, log_ratio_max, normalize};
  STD_TORCH_CHECK(fdkernels::find_divergence(divergence.c_str(), &options.divergence), "divergence: unknown name '",
                  divergence, "'");
  STD_TORCH_CHECK(log_ratio_min <= log_ratio_max, "log_ratio_min: expected at most log_ratio_max");
  return options;
}

fdkernels::cpu::Threads threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [&](int64_t begin, int64_t end) { body(begin, end, context); });
          }};
}

std::tuple<Tensor, Tensor> fdiv_weight_native(Tensor logits, OptionalTensor t, OptionalTensor ratio_mean,
                                              OptionalTensor edges, double t_min, double t_max, double decay,
                                              bool update, std::string divergence, double alpha, double log_ratio_min,
                                              double log_ratio_max, bool normalize_weight) {
  const int64_t batch = logits.dim() > 0 ? logits.size(0) : 0;
  const auto options = weight_options(divergence, alpha, log_ratio_min, log_ratio_max, normalize_weight);
  const auto state = ratio_state({ratio_mean, edges, t_min, t_max, decay, update}, t.has_value());
  std::vector<double> L = combine(logits, batch), levels;
  if (t) levels = to_double(*t, batch, "t");
  Tensor weight = new_tensor({batch}, ScalarType::Double);
  Tensor stats = new_tensor({fdkernels::kWeightStats}, ScalarType::Double);
  fdkernels::fdiv_weight(batch, L.data(), t ? levels.data() : nullptr, state, options,
                         static_cast<double*>(weight.data_ptr()), static_cast<double*>(stats.data_ptr()));
  return {weight, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fdiv_native(
    Tensor student, Tensor teacher, Tensor fake, OptionalTensor teacher_uncond, OptionalTensor fake_uncond,
    double guidance_scale, double fake_guidance_scale, OptionalTensor noisy, OptionalTensor a, OptionalTensor c,
    int64_t coefficient_inner, OptionalTensor logits, OptionalTensor t, OptionalTensor weight,
    OptionalTensor ratio_mean, OptionalTensor edges, double t_min, double t_max, double decay, bool update,
    std::string divergence, double alpha, double log_ratio_min, double log_ratio_max, bool normalize_weight,
    bool dmd_scale, double eps, OptionalTensor scale, int64_t scale_inner, OptionalTensor mask, int64_t mask_inner,
    bool zero_nonfinite, std::string reduction, bool with_grad, bool with_stats) {
  STD_TORCH_CHECK(student.dim() > 0, "student: expected shape (B, ...)");
  const int64_t batch = student.size(0), elements = elements_per_sample(student);
  STD_TORCH_CHECK(elements > 0, "student: expected at least one element a sample");
  fdkernels::Problem p{};
  p.batch = batch;
  p.elements = elements;
  p.student = images(student, student, "student");
  p.teacher = images(teacher, student, "teacher");
  p.fake = images(fake, student, "fake");
  p.teacher_uncond = images(teacher_uncond, student, "teacher_uncond");
  p.fake_uncond = images(fake_uncond, student, "fake_uncond");
  p.noisy = images(noisy, student, "noisy");
  p.guidance_scale = guidance_scale;
  p.fake_guidance_scale = fake_guidance_scale;
  STD_TORCH_CHECK(a.has_value() == c.has_value() && (!noisy || c), "a, c: expected together, and beside noisy");
  p.a = table(a, coefficient_inner, batch, elements, false, "a");
  p.c = table(c, coefficient_inner, batch, elements, false, "c");
  p.scale = table(scale, scale_inner, batch, elements, false, "scale");
  p.mask = table(mask, mask_inner, batch, elements, true, "mask");
  p.dmd_scale = dmd_scale;
  p.eps = eps;
  p.zero_nonfinite = zero_nonfinite;
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", "reduction: unknown '", reduction,
                  "'");
  p.reduction = reduction == "mean"  ? fdkernels::Reduction::mean
                : reduction == "sum" ? fdkernels::Reduction::sum
                                     : fdkernels::Reduction::none;
  p.with_stats = with_stats;
  for (const auto* input : {&p.student, &p.teacher, &p.fake, &p.teacher_uncond, &p.fake_uncond, &p.noisy}) {
    p.wide = p.wide || (input->data != nullptr && input->dtype == DType::f64);
  }
  STD_TORCH_CHECK(!(logits && weight), "weight: expected without logits");
  const auto options = weight_options(divergence, alpha, log_ratio_min, log_ratio_max, normalize_weight);
  const auto state = ratio_state({ratio_mean, edges, t_min, t_max, decay, update}, t.has_value());
  std::vector<double> L, h(batch, 1.0), levels;
  if (logits) L = combine(*logits, batch);
  if (weight) h = to_double(*weight, batch, "weight");
  if (t) levels = to_double(*t, batch, "t");

  const bool per_sample = reduction == "none";
  const bool is_double = student.scalar_type() == ScalarType::Double;
  const bool scaled = with_grad && student.scalar_type() == ScalarType::Half;
  const torch::headeronly::IntHeaderOnlyArrayRef loss_shape(&batch, per_sample ? 1 : 0);
  const int64_t zero = 0;
  const torch::headeronly::IntHeaderOnlyArrayRef none(&zero, 1);
  Tensor loss = new_tensor(loss_shape, is_double ? ScalarType::Double : ScalarType::Float);
  Tensor gradient = new_tensor(with_grad ? student.sizes() : none, student.scalar_type());
  Tensor unscale = new_tensor(scaled ? loss_shape : none, ScalarType::Float);
  Tensor stats = new_tensor({with_stats ? fdkernels::kStats : 0}, ScalarType::Double);

  double given_stats[fdkernels::kStats];
  double* stats_data = with_stats ? static_cast<double*>(stats.data_ptr()) : given_stats;
  if (logits) {
    fdkernels::fdiv_weight(batch, L.data(), t ? levels.data() : nullptr, state, options, h.data(), stats_data);
  } else {
    for (int64_t b = 0; t && b < batch; ++b) {
      if (!std::isfinite(levels[b])) h[b] = std::numeric_limits<double>::quiet_NaN();
    }
    fdkernels::given_weight_stats(batch, h.data(), stats_data);
  }
  p.weight = h.data();
  p.gradient = with_grad ? gradient.data_ptr() : nullptr;
  std::vector<double> losses(per_sample ? batch : 1);
  fdkernels::cpu::fdiv(p, threads(), losses.data(), scaled ? static_cast<float*>(unscale.data_ptr()) : nullptr,
                       with_stats ? stats_data : nullptr);
  for (size_t b = 0; b < losses.size(); ++b) {
    if (is_double) {
      static_cast<double*>(loss.data_ptr())[b] = losses[b];
    } else {
      static_cast<float*>(loss.data_ptr())[b] = static_cast<float>(losses[b]);
    }
  }
  return {loss, gradient, unscale, stats};
}

// upstream * unscale, for the whole batch or per sample.
void scale_into(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out) {
  STD_TORCH_CHECK(gradient.is_cpu() && gradient.dim() > 0 && gradient.is_contiguous() && out.is_contiguous(),
                  "gradient: expected a contiguous CPU tensor");
  const bool per_sample = upstream.dim() == 1;
  const int64_t batch = gradient.size(0), count = per_sample ? batch : 1;
  STD_TORCH_CHECK(upstream.dim() <= 1 && upstream.numel() == count, "upstream: expected () or (B,)");
  std::vector<double> factor = to_double(upstream, count, "upstream");
  if (unscale.numel() > 0) {
    const std::vector<double> power = to_double(unscale, count, "unscale");
    for (int64_t b = 0; b < count; ++b) factor[b] *= power[b];
  }
  fdkernels::cpu::scale_gradient(gradient.data_ptr(), dtype_of(gradient, "gradient"), batch,
                                 elements_per_sample(gradient), factor.data(), per_sample, out.data_ptr(), threads());
}

Tensor fdiv_backward_native(Tensor gradient, Tensor upstream, Tensor unscale) {
  Tensor out = new_tensor(gradient.sizes(), gradient.scalar_type());
  scale_into(gradient, upstream, unscale, out);
  return out;
}

void fdiv_backward_native_(Tensor gradient, Tensor upstream, Tensor unscale) {
  scale_into(gradient, upstream, unscale, gradient);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("fdiv_native", TORCH_BOX(&fdiv_native));
  m.impl("fdiv_weight_native", TORCH_BOX(&fdiv_weight_native));
  m.impl("fdiv_backward_native", TORCH_BOX(&fdiv_backward_native));
  m.impl("fdiv_backward_native_", TORCH_BOX(&fdiv_backward_native_));
}
