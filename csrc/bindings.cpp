// fdkernels._core: build information, the double-precision divergence math on NumPy arrays, and the plans that the CUDA
// launcher follows. Uses neither torch nor CUDA, so that it can be imported without a GPU, or if torch is missing or
// broken.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adversarial/arguments.h"
#include "core/planning.h"
#include "denoising/arguments.h"
#include "fdiv/arguments.h"
#include "fdiv/divergences.h"
#include "fdiv/plan_call.h"
#include "implicit/arguments.h"
#include "implicit/plan_call.h"
#include "noising/arguments.h"

namespace py = pybind11;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<std::string> divergences() {
  return {std::begin(fdkernels::kDivergenceNames), std::end(fdkernels::kDivergenceNames)};
}

fdkernels::Divergence find(const std::string& name) {
  fdkernels::Divergence found;
  if (fdkernels::find_name(fdkernels::kDivergenceNames, name.c_str(), &found)) {
    return found;
  }
  std::ostringstream message;
  message << "name: expected one of";
  for (const std::string& known : divergences()) {
    message << " " << known;
  }
  message << ", got " << name;
  throw py::value_error(message.str());
}

double checked_alpha(fdkernels::Divergence divergence, const std::string& name, std::optional<double> alpha) {
  const bool needed = divergence == fdkernels::Divergence::alpha;
  if (needed != alpha.has_value()) {
    throw py::value_error(needed ? std::string("alpha: expected a number for the divergence alpha, got None")
                                 : "alpha: expected None for the divergence " + name + ", got a number");
  }
  if (needed && !std::isfinite(*alpha)) {
    throw py::value_error("alpha: expected a finite number, got " + std::to_string(*alpha));
  }
  return alpha.value_or(0.0);
}

Array log_weight(const std::string& name, const Array& log_ratio, std::optional<double> alpha) {
  const fdkernels::Divergence divergence = find(name);
  const double a = checked_alpha(divergence, name, alpha);
  Array result(std::vector<py::ssize_t>(log_ratio.shape(), log_ratio.shape() + log_ratio.ndim()));
  const double* in = log_ratio.data();
  double* out = result.mutable_data();
  for (py::ssize_t i = 0; i < log_ratio.size(); ++i) {
    out[i] = fdkernels::log_weight(divergence, in[i], a);
  }
  return result;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream list(text);
  for (std::string part; std::getline(list, part, ',');) {
    parts.push_back(part);
  }
  return parts;
}

// An op's list of arguments: (kind, name) in the order of its schema.
using Listed = std::vector<std::pair<std::string, std::string>>;

Listed arguments(const std::string& op) {
#define FDK_LISTED(kind, name) {#kind, #name},
  if (op == "fdiv") return {FDK_FDIV_ARGUMENTS(FDK_LISTED)};
  if (op == "fdiv_weight") return {FDK_FDIV_WEIGHT_ARGUMENTS(FDK_LISTED)};
  if (op == "adversarial") return {FDK_ADVERSARIAL_ARGUMENTS(FDK_LISTED)};
  if (op == "denoising") return {FDK_DENOISING_ARGUMENTS(FDK_LISTED)};
  if (op == "implicit") return {FDK_IMPLICIT_ARGUMENTS(FDK_LISTED)};
  if (op == "noising") return {FDK_NOISING_ARGUMENTS(FDK_LISTED)};
#undef FDK_LISTED
  throw py::value_error("op: expected fdiv, fdiv_weight, noising, denoising, adversarial or implicit, got " + op);
}

py::dict build_info() {
  py::dict info;
  info["version"] = FDKERNELS_VERSION;
  info["compiler"] = FDKERNELS_COMPILER;
  info["flags"] = FDKERNELS_FLAGS;
  info["isa"] = split(FDKERNELS_ISA_LEVELS);
  info["cuda"] = FDKERNELS_CUDA;
  info["cuda_archs"] = split(FDKERNELS_CUDA_ARCHS);
  return info;
}

// ---- plans

using MaybeName = std::optional<std::string>;

py::value_error expected(const std::string& argument, const std::string& what, const std::string& got) {
  return py::value_error(argument + ": expected " + what + ", got " + got);
}

// Returns a count that lies in the range, else throws.
int64_t checked(const char* argument, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return value;
  const std::string range = "from " + std::to_string(least) + " to " + std::to_string(most);
  throw expected(argument, "a count " + range, std::to_string(value));
}

fdkernels::DType dtype_named(const char* argument, const std::string& name) {
  if (name == "bf16") return fdkernels::DType::bf16;
  if (name == "fp16") return fdkernels::DType::f16;
  if (name == "fp32") return fdkernels::DType::f32;
  if (name == "fp64") return fdkernels::DType::f64;
  throw expected(argument, "one of bf16 fp16 fp32 fp64", name);
}

const char* name_of(fdkernels::ImplicitLoads loads) {
  constexpr const char* kNames[] = {"bf16", "fp32", "any_fp32", "any_fp64"};
  return kNames[static_cast<int>(loads)];
}

const char* name_of(fdkernels::Loads loads) {
  constexpr const char* kNames[fdkernels::kLoads] = {"bf16",      "fp16",     "fp32",    "bf16_fp32",
                                                     "fp16_fp32", "any_fp32", "any_fp64"};
  return kNames[static_cast<int>(loads)];
}

double checked_figure(const std::string& name, const py::handle& value, double least, double most) {
  double figure = NAN;
  try {
    figure = value.cast<double>();
  } catch (const py::cast_error&) {
  }
  if (figure >= least && figure <= most) return figure;
  std::ostringstream what;
  what << name << " from " << least << " to " << most;
  throw expected("limits", what.str(), py::repr(value));
}

fdkernels::DeviceLimits device_limits(const py::dict& given) {
  constexpr double kMostBlocks = 1e5, kMostBytes = 1e15;  // products of these do not overflow
  size_t known = 0;
  const auto find = [&](const char* name) -> py::object {
    if (!given.contains(name)) throw expected("limits", std::string("the key ") + name, py::repr(given));
    ++known;
    return given[name];
  };
  const auto figure = [&](const char* name, double least, double most) {
    return checked_figure(name, find(name), least, most);
  };
  fdkernels::DeviceLimits limits{};
  limits.capability = static_cast<int>(figure("capability", 10, kMostBlocks));
  limits.multiprocessors = static_cast<int>(figure("multiprocessors", 1, kMostBlocks));
  // The least shared memory is below that of any GPU, for made-up devices.
  limits.shared_per_block = static_cast<int64_t>(figure("shared_per_block", 4096, kMostBytes));
  limits.shared_per_multiprocessor = static_cast<int64_t>(figure("shared_per_multiprocessor", 4096, kMostBytes));
  limits.cache = static_cast<int64_t>(figure("cache", 0, kMostBytes));
  limits.bandwidth = figure("bandwidth", 1, kMostBytes);
  const py::object clusters = find("active_clusters");
  if (!py::isinstance<py::sequence>(clusters) || py::len(clusters) != fdkernels::kClusterSizes) {
    throw expected("limits", "active_clusters of the sizes 1, 2, 4, 8, 16", py::repr(clusters));
  }
  for (int i = 0; i < fdkernels::kClusterSizes; ++i) {
    limits.active_clusters[i] =
        static_cast<int>(checked_figure("active_clusters", clusters[py::int_(i)], 0, kMostBlocks));
  }
  if (py::len(given) != known) throw expected("limits", "the fields of DeviceLimits alone", py::repr(given));
  return limits;
}

// A call as the launcher would see it.
struct Request {
  const char* loads;
  fdkernels::Workload work;
  fdkernels::DeviceLimits limits;
  fdkernels::Allowed allowed;
};

// A field of CallShape in fdkernels/call_shape.py.
template <class T>
T field(const py::object& call, const char* name) {
  const py::object value = call.attr(name);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(name) + ": expected what CallShape says, got " +
                         py::repr(value).cast<std::string>());
  }
}

constexpr int64_t kMost = int64_t{1} << 60;  // elements of a call: no memory holds as many
char present = 0;                            // stands for an operand's data; nothing reads it

// A call of the op implicit, with all gradients or none.
void plan_implicit(const py::object& call, Request& r) {
  fdkernels::Implicit p{};
  p.batch = checked("batch", field<int64_t>(call, "batch"), 1, kMost);
  p.elements = checked("elements", field<int64_t>(call, "elements"), 1, kMost / p.batch);
  std::string dtype;
  const char* const names[fdkernels::kImplicitInputs] = {"student", "teacher", "fake"};
  for (int i = 0; i < fdkernels::kImplicitInputs; ++i) {
    dtype = field<MaybeName>(call, names[i]).value_or(dtype);
    p.inputs[i] = {&present, dtype_named(names[i], dtype), p.elements};
    p.gradients[i] = field<bool>(call, "with_grad") ? &present : nullptr;
  }
  const fdkernels::ImplicitLoads loads = loads_of(p);
  r.loads = name_of(loads);
  r.work = workload_of(p, loads);
}

void plan_fdiv(const py::object& call, Request& r) {
  fdkernels::Problem p{};
  const int64_t batch = p.batch = checked("batch", field<int64_t>(call, "batch"), 1, kMost);
  const int64_t elements = p.elements = checked("elements", field<int64_t>(call, "elements"), 1, kMost / batch);
  const auto samples = [&](const char* name, const MaybeName& otherwise) {
    const MaybeName given = field<MaybeName>(call, name), dtype = given ? given : otherwise;
    return dtype ? fdkernels::Samples{&present, dtype_named(name, *dtype), elements} : fdkernels::Samples{};
  };
  const auto student = field<std::string>(call, "student");
  const auto teacher = field<MaybeName>(call, "teacher").value_or(student);
  p.student = samples("student", student);
  p.teacher = samples("teacher", student);
  p.fake = samples("fake", teacher);
  p.teacher_uncond = samples("teacher_uncond", {});
  p.fake_uncond = samples("fake_uncond", {});
  p.noisy = samples("noisy", {});
  const bool raw = field<bool>(call, "raw") || p.noisy.data != nullptr;
  p.prediction = raw ? fdkernels::PredictionKind::affine : fdkernels::PredictionKind::sample;
  const auto tile = [&](const char* argument, fdkernels::Table& table, int64_t rows, int64_t entries) {
    if ((rows != 1 && rows != batch) || entries < 1 || elements % entries != 0) {
      const std::string ways = rows == batch ? "" : "1 or " + std::to_string(batch) + " rows of ";
      throw expected(argument, ways + "entries that divide " + std::to_string(elements) + " elements",
                     (rows == batch ? "" : std::to_string(rows) + " of ") + std::to_string(entries));
    }
    table = {&present, fdkernels::DType::f32, rows == 1 ? 0 : entries, entries, elements / entries};
  };
  const auto multiplier = field<int64_t>(call, "multiplier");
  if (multiplier != 0) tile("multiplier", p.multiplier, batch, multiplier);
  const auto mask = field<std::optional<std::pair<int64_t, int64_t>>>(call, "mask");
  if (mask) tile("mask", p.mask, mask->first, mask->second);
  p.dmd_scale = field<bool>(call, "dmd_scale");
  p.with_stats = field<bool>(call, "with_stats");
  p.gradient = field<bool>(call, "with_grad") ? &present : nullptr;
  const auto reduction = field<std::string>(call, "reduction");
  if (!fdkernels::find_name(fdkernels::kReductionNames, reduction.c_str(), &p.reduction)) {
    throw expected("reduction", "one of mean sum none", reduction);
  }
  const auto heads = field<int64_t>(call, "heads"), bins = field<int64_t>(call, "bins");
  checked("heads", heads, 0, kMost / batch);
  if (heads == 0 && bins != 0) throw expected("bins", "0 without logits (heads=0)", std::to_string(bins));
  checked("bins", bins, 0, INT32_MAX);

  const fdkernels::Loads loads = loads_of(p);
  r.loads = name_of(loads);
  r.work = workload_of(p, loads, is_general(p, loads), heads, bins, field<bool>(call, "counted"));
}

Request request(const py::object& call, const py::dict& limits, const std::string& allowed) {
  Request r;
  const auto op = field<std::string>(call, "op");
  if (op != "fdiv" && op != "implicit") throw expected("op", "fdiv or implicit", op);
  op == "fdiv" ? plan_fdiv(call, r) : plan_implicit(call, r);
  r.limits = device_limits(limits);
  if (!fdkernels::parse_allowed(allowed, &r.allowed)) {
    throw expected("allowed", std::string("auto, ") + fdkernels::kAllowed, allowed);
  }
  return r;
}

py::dict to_dict(const Request& r, const fdkernels::Plan& plan) {
  const auto elements = static_cast<double>(r.work.elements);
  py::dict d;
  d["schedule"] = plan.schedule == fdkernels::Schedule::grid ? "grid" : "cluster";
  d["team"] = plan.team;
  d["teams"] = plan.teams;
  d["blocks"] = plan.blocks();
  d["threads"] = plan.threads;
  d["weighing"] = plan.weighing;
  d["share"] = plan.share;
  d["held"] = plan.held;
  d["buffers"] = plan.buffers;
  d["shared_bytes"] = plan.shared_bytes;
  d["again"] = plan.again;
  d["prefetched"] = plan.prefetched;
  d["weigh_first"] = plan.weigh_first;
  d["count_first"] = plan.count_first;
  d["launches"] = fdkernels::launches_of(r.work, plan);
  d["phases"] = 1 + static_cast<double>(plan.again) / elements;
  d["loads"] = r.loads;
  d["general"] = r.work.general;
  d["vector"] = r.work.vector;
  d["minimum_bytes"] = fdkernels::bytes_moved(r.work, r.limits, 0);
  d["bytes"] = plan.bytes;
  d["seconds"] = plan.seconds;
  return d;
}

// Calls the function that the launcher calls.
py::dict plan(const py::object& call, const py::dict& limits, const std::string& allowed) {
  const Request r = request(call, limits, allowed);
  try {
    return to_dict(r, fdkernels::plan(r.work, r.limits, r.allowed));
  } catch (const std::invalid_argument&) {
    const std::string sample = std::to_string(r.work.elements) + " elements";
    throw expected("allowed", "a schedule that this device can run and that can hold a sample of " + sample, allowed);
  }
}

py::list plans(const py::object& call, const py::dict& limits, const std::string& allowed) {
  const Request r = request(call, limits, allowed);
  py::list list;
  for (const fdkernels::Plan& one : fdkernels::plans(r.work, r.limits, r.allowed)) list.append(to_dict(r, one));
  return list;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Build information, double-precision divergence math and the CUDA launcher's plans, without torch.";
  m.def("build_info", &build_info,
        "What the binaries were built with: version, compiler, flags, isa levels, cuda, cuda_archs.");
  m.def("arguments", &arguments, py::arg("op"), "An op's arguments in C++: (kind, name) in the order of its schema.");
  m.def("divergences", &divergences, "The names in the C++ table of divergences.");
  m.def("log_weight", &log_weight, py::arg("name"), py::arg("log_ratio"), py::arg("alpha") = py::none(),
        "log h at log_ratio = log r, in float64. `alpha` belongs to the divergence alpha alone.");
  m.def("plan", &plan, py::arg("call"), py::arg("limits"), py::arg("allowed") = "auto",
        "How the CUDA backend spreads a forward call over a device: what its launcher obeys. See _core.pyi.");
  m.def("plans", &plans, py::arg("call"), py::arg("limits"), py::arg("allowed") = "auto",
        "Every schedule that is allowed and can run, in the order of the choice: the first is plan's.");
}
