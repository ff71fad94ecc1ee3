// fdkernels._core: what the binaries were built with, and the double-precision divergence math on NumPy arrays.
// Knows nothing of torch, so it can be imported, and the table inspected, where torch is missing or broken.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "fdkernels/divergences.h"

namespace py = pybind11;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<std::string> divergences() {
  return {std::begin(fdkernels::kDivergenceNames), std::end(fdkernels::kDivergenceNames)};
}

fdkernels::Divergence find(const std::string& name) {
  fdkernels::Divergence found;
  if (fdkernels::find_divergence(name.c_str(), &found)) {
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

template <bool kExponentiate>
Array evaluate(const std::string& name, const Array& log_ratio, std::optional<double> alpha) {
  const fdkernels::Divergence divergence = find(name);
  const double a = checked_alpha(divergence, name, alpha);
  Array result(std::vector<py::ssize_t>(log_ratio.shape(), log_ratio.shape() + log_ratio.ndim()));
  const double* in = log_ratio.data();
  double* out = result.mutable_data();
  for (py::ssize_t i = 0; i < log_ratio.size(); ++i) {
    const double log_h = fdkernels::log_weight(divergence, in[i], a);
    out[i] = kExponentiate ? std::exp(log_h) : log_h;
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

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Build information and double-precision divergence math, without torch.";
  m.def("build_info", &build_info,
        "What the binaries were built with: version, compiler, flags, isa levels, cuda, cuda_archs.");
  m.def("divergences", &divergences, "The names in the C++ table of divergences.");
  m.def("log_weight", &evaluate<false>, py::arg("name"), py::arg("log_ratio"), py::arg("alpha") = py::none(),
        "log h at log_ratio = log r, in float64. `alpha` belongs to the divergence alpha alone.");
  m.def("weight", &evaluate<true>, py::arg("name"), py::arg("log_ratio"), py::arg("alpha") = py::none(),
        "h = r^2 f''(r) at log_ratio = log r, in float64. `alpha` belongs to the divergence alpha alone.");
}
