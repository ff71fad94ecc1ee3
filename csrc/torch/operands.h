// From an op's arguments to raw operands. Python validates public calls; the checks here keep a direct call of a raw op
// from reading past a tensor. fdkernels/_op/operands.py makes the same checks for Triton.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/names.h"
#include "core/tensors.h"
#include "torch/arguments.h"

// A function of libtorch outside the stable ABI. It is null if a later torch lacks it; every call then counts as a
// forward.
namespace torch::autograd {
__attribute__((weak, visibility("default"))) int get_current_graph_task_id();
}

namespace fdkernels::ops {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Whether autograd is running in this thread. A forward is then the second one of an activation checkpoint, and must
// not update state again (fdkernels/_op/registry.py, inside_backward).
inline bool inside_backward() {
  return torch::autograd::get_current_graph_task_id != nullptr && torch::autograd::get_current_graph_task_id() != -1;
}

inline bool same_device(const Tensor& tensor, const Tensor& other) {
  return tensor.device() == other.device();
}

inline DType dtype_of(const Tensor& tensor, const char* name) {
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
      refuse(name, ": expected a floating dtype");
  }
}

inline int64_t elements_per_sample(const Tensor& tensor) {
  expect(tensor.dim() > 0, "expected shape (B, ...)");
  int64_t elements = 1;
  for (int64_t d = 1; d < tensor.dim(); ++d) elements *= tensor.size(d);
  return elements;
}

// Sets a call's batch and elements from its first tensor.
template <class Call>
void set_extent(const Tensor& first, const char* name, Call* call) {
  expect(first.dim() > 0, name, ": expected shape (B, ...)");
  call->batch = first.size(0);
  call->elements = elements_per_sample(first);
  expect(call->batch > 0 && call->elements > 0, name, ": expected at least one sample and one element a sample");
}

// Sets an enumerator by its name.
template <size_t count, class Enumerator>
void set_choice(const char* const (&names)[count], const std::string& given, const char* argument, Enumerator* to) {
  expect(find_name(names, given.c_str(), to), argument, ": unknown '", given, "'");
}

inline Samples samples_of(const Tensor& tensor, const Tensor& like, const char* name) {
  expect(same_device(tensor, like), name, ": expected student's device");
  expect(tensor.dim() == like.dim(), name, ": expected the rank of student");
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    expect(tensor.size(d) == like.size(d), name, ": expected the shape of student");
    expect(d == 0 || tensor.size(d) == 1 || tensor.stride(d) == expected, name, ": expected dense samples");
    if (d > 0) expected *= tensor.size(d);
  }
  return {tensor.data_ptr(), dtype_of(tensor, name), tensor.stride(0)};
}

inline Samples samples_of(const OptionalTensor& tensor, const Tensor& like, const char* name) {
  return tensor ? samples_of(*tensor, like, name) : Samples{};
}

// fixed: the table's value if it has no entries.
inline Table table_of(const TableArgument& given, const Tensor& like, int64_t elements, bool is_mask, const char* name,
                      double fixed = 1) {
  if (!given.entries) {
    Table none;
    none.fixed = fixed;
    return none;
  }
  const Tensor& tensor = *given.entries;
  expect(same_device(tensor, like) && tensor.dim() == 2, name, ": expected a (B or 1, R) tensor on student's device");
  const int64_t rows = tensor.size(0), entries = tensor.size(1), inner = given.inner;
  expect(rows == like.size(0) || rows == 1, name, ": expected one row, or one per sample");
  expect(entries == 1 || tensor.stride(1) == 1, name, ": expected dense rows");
  expect(
      inner > 0 && inner <= elements && entries > 0 && entries <= elements / inner && elements % (entries * inner) == 0,
      name, ": entries and their runs do not tile a sample");
  const ScalarType dtype = tensor.scalar_type();
  expect(is_mask ? dtype == ScalarType::Bool : (dtype == ScalarType::Float || dtype == ScalarType::Double), name,
         is_mask ? ": expected bool" : ": expected float32 or float64");
  const DType stored = dtype == ScalarType::Double ? DType::f64 : DType::f32;
  return {tensor.data_ptr(), stored, rows == 1 ? 0 : tensor.stride(0), entries, inner, fixed};
}

// The number of heads of logits of shape (B,) or (B, heads).
inline int64_t heads_of(const Tensor& logits, int64_t batch, const char* name = "logits") {
  expect((logits.dim() == 1 || logits.dim() == 2) && logits.size(0) == batch, name,
         ": expected shape (B,) or (B, heads)");
  const int64_t heads = logits.dim() == 2 ? logits.size(1) : 1;
  expect(heads > 0, name, ": expected at least one head");
  dtype_of(logits, name);
  return heads;
}

inline void expect_real(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  const bool is_complex =
      dtype == ScalarType::ComplexHalf || dtype == ScalarType::ComplexFloat || dtype == ScalarType::ComplexDouble;
  expect(!is_complex, name, ": expected a real dtype");
}

// The values of a real (B,) or () tensor on the CPU.
inline std::vector<double> to_double(const Tensor& tensor, int64_t count, const char* name) {
  expect_real(tensor, name);
  expect(tensor.is_cpu() && tensor.dim() <= 1 && tensor.numel() == count, name,
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

// Checks the divisor of a mean: null, or one value on the samples' device or the CPU.
inline void check_count(const OptionalTensor& count, Reduction reduction, const Tensor& like) {
  if (!count) return;
  expect(reduction == Reduction::mean && count->numel() == 1, "divisor: expected one value, with reduction mean");
  expect(count->is_cpu() || same_device(*count, like), "divisor: expected student's device or the CPU");
}

// N of a mean, at least 1, if the call gives it on the CPU; else 0.
inline double host_count(const OptionalTensor& count) {
  if (!count || !count->is_cpu()) return 0;
  const double given = to_double(*count, 1, "divisor")[0];
  return given < 1 ? 1 : given;
}

// The seed of drawn numbers, on the samples' device; null if there is none.
inline const int64_t* seed_of(const OptionalTensor& seed, const Tensor& like) {
  if (!seed) return nullptr;
  expect(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long && same_device(*seed, like),
         "seed: expected one int64 value on the samples' device");
  return static_cast<const int64_t*>(seed->data_ptr());
}

// ---- results

// A new contiguous tensor. The C shim costs a fraction of torch::stable::empty, which goes through the dispatcher.
inline Tensor new_tensor(Sizes sizes, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes[d + 1];
  AtenTensorHandle handle;
  const bool cpu = like.is_cpu();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides.data(), static_cast<int32_t>(dtype),
      cpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), cpu ? 0 : like.get_device_index(), &handle));
  return Tensor(handle);
}

// The loss's value, float32, or float64 if `like` is.
struct LossResult {
  bool per_sample, is_double;  // reduction "none"; a double loss
  int64_t batch;
  Tensor loss;

  LossResult(const Tensor& like, Reduction reduction)
      : per_sample(reduction == Reduction::none),
        is_double(like.scalar_type() == ScalarType::Double),
        batch(like.size(0)),
        loss(new_tensor(shape(), is_double ? ScalarType::Double : ScalarType::Float, like)) {}

  Sizes shape() const {
    return Sizes(&batch, per_sample ? 1 : 0);
  }

  // On the CPU: of the batch, or of sample b.
  void set_loss(size_t b, double value) const {
    if (is_double) {
      static_cast<double*>(loss.data_ptr())[b] = value;
    } else {
      static_cast<float*>(loss.data_ptr())[b] = static_cast<float>(value);
    }
  }

  // On the CPU, from parts of the batch's sum, or from each sample's sum.
  void set_losses(const std::vector<double>& sums, double divisor) const {
    if (!per_sample) return set_loss(0, std::accumulate(sums.begin(), sums.end(), 0.0) / divisor);
    for (size_t b = 0; b < sums.size(); ++b) set_loss(b, sums[b] / divisor);
  }
};

// A loss's gradient of the input `like`, and its unscale; empty if they are not wanted.
struct GradientResult {
  bool wanted, scaled;  // scaled: a float16 gradient
  Tensor gradient, unscale;

  GradientResult(const Tensor& like, const LossResult& of, bool with_grad)
      : wanted(with_grad), scaled(with_grad && like.scalar_type() == ScalarType::Half) {
    const int64_t zero = 0;
    const Sizes none(&zero, 1);
    gradient = new_tensor(with_grad ? like.sizes() : none, like.scalar_type(), like);
    unscale = new_tensor(scaled ? of.shape() : none, ScalarType::Float, like);
  }

  void* data() const {
    return wanted ? gradient.data_ptr() : nullptr;
  }

  float* unscale_data() const {
    return scaled ? static_cast<float*>(unscale.data_ptr()) : nullptr;
  }

  // On the CPU.
  void set_unscale(double value) const {
    if (scaled) std::fill_n(unscale_data(), unscale.numel(), static_cast<float>(value));
  }
};

// ---- the ops scale_native and scale_native_ (in place), around a function that scales gradients into `outs`

using Tensors = std::vector<Tensor>;
using ScaleInto = void(const Tensors& gradients, const Tensor& upstream, const Tensors& unscales, const Tensors& outs);

template <ScaleInto* kScale>
Tensors scale_op(Tensors gradients, Tensor upstream, Tensors unscales) {
  Tensors outs;
  for (const Tensor& each : gradients) outs.push_back(new_tensor(each.sizes(), each.scalar_type(), each));
  kScale(gradients, upstream, unscales, outs);
  return outs;
}

template <ScaleInto* kScale>
void scale_in_place_op(Tensors gradients, Tensor upstream, Tensors unscales) {
  kScale(gradients, upstream, unscales, gradients);
}

inline void expect_pairs(const Tensors& gradients, const Tensors& unscales) {
  expect(!gradients.empty(), "gradients: expected at least one");
  expect(unscales.size() == gradients.size(), "unscales: expected one for each gradient");
}

// Checks the shapes, then returns whether upstream has a value for each sample.
inline bool is_per_sample(const Tensor& gradient, const Tensor& upstream, const Tensor& unscale, const Tensor& out) {
  expect(gradient.dim() > 0 && gradient.is_contiguous() && out.is_contiguous(),
         "gradient: expected a contiguous tensor");
  const bool per_sample = upstream.dim() == 1;
  const int64_t count = per_sample ? gradient.size(0) : 1;
  expect(upstream.dim() <= 1 && upstream.numel() == count, "upstream: expected () or (B,)");
  expect(unscale.numel() == 0 || unscale.numel() == count, "unscale: expected upstream's shape, or none");
  expect(same_device(upstream, gradient), "upstream: expected gradient's device");
  expect(same_device(unscale, gradient), "unscale: expected gradient's device");
  return per_sample;
}

}  // namespace fdkernels::ops
