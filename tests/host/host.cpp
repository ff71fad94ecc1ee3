// The CUDA kernels' own functions (csrc/fdkernels/sample.h), called thread by thread on the host, for pytest.
#undef NDEBUG
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "fdkernels/sample.h"

namespace py = pybind11;
using namespace fdkernels;

namespace {

DType dtype_named(const std::string& name) {
  static const std::map<std::string, DType> names = {
      {"float32", DType::f32}, {"float64", DType::f64}, {"bfloat16", DType::bf16}, {"float16", DType::f16}};
  return names.at(name);
}

// (address, dtype, batch stride)
Images images(const py::object& given) {
  if (given.is_none()) return {};
  const auto [address, dtype, stride] = given.cast<std::tuple<uintptr_t, std::string, int64_t>>();
  return {reinterpret_cast<const void*>(address), dtype_named(dtype), stride};
}

// (address, float64, batch stride, entries, inner)
Table table(const py::object& given) {
  if (given.is_none()) return {};
  const auto [address, wide, stride, entries, inner] =
      given.cast<std::tuple<uintptr_t, bool, int64_t, int64_t, int64_t>>();
  return {reinterpret_cast<const void*>(address), wide ? DType::f64 : DType::f32, stride, entries, inner};
}

Problem problem(const py::dict& given) {
  Problem p{};
  p.batch = given["batch"].cast<int64_t>();
  p.elements = given["elements"].cast<int64_t>();
  p.student = images(given["student"]);
  p.teacher = images(given["teacher"]);
  p.fake = images(given["fake"]);
  p.teacher_uncond = images(given["teacher_uncond"]);
  p.fake_uncond = images(given["fake_uncond"]);
  p.noisy = images(given["noisy"]);
  p.guidance_scale = given["guidance_scale"].cast<double>();
  p.fake_guidance_scale = given["fake_guidance_scale"].cast<double>();
  p.a = table(given["a"]);
  p.c = table(given["c"]);
  p.scale = table(given["scale"]);
  p.mask = table(given["mask"]);
  p.dmd_scale = given["dmd_scale"].cast<bool>();
  p.eps = given["eps"].cast<double>();
  p.zero_nonfinite = given["zero_nonfinite"].cast<bool>();
  p.with_stats = given["with_stats"].cast<bool>();
  p.gradient = reinterpret_cast<void*>(given["gradient"].cast<uintptr_t>());
  p.aligned = given["aligned"].cast<bool>();
  return p;
}

// A team of blocks, one thread after the other.
struct Team {
  int64_t share;
  int held, blocks, threads;
};

template <class Ty, bool kGeneral>
py::list run(const Problem& p, const Team& team, const std::vector<double>& h, const std::vector<double>& divisor) {
  constexpr int V = kVector<Ty>, kPlanes = V * sizeof(typename Ty::T) / 16;
  Words poison;
  std::memset(&poison, 0xff, sizeof(poison));  // NaN in every type
  py::list results;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<std::vector<Words>> hold(team.blocks, std::vector<Words>(team.held * kPlanes + 1, poison));
    Sums sums;
    for (int rank = 0; rank < team.blocks; ++rank) {
      for (int thread = 0; thread < team.threads; ++thread) {
        const Part part = part_of(p.elements, team.share, team.held, rank, thread, team.threads);
        const Sums mine = gather<Ty, kGeneral>(p, b, part, hold[rank].data());
        sums.distance += mine.distance, sums.energy += mine.energy, sums.gap += mine.gap, sums.kept += mine.kept;
        sums.nonfinite = sums.nonfinite || mine.nonfinite;
      }
    }
    const double w = sample_weight(p, b, h[b], sums);
    for (int rank = 0; rank < team.blocks; ++rank) {
      for (int thread = 0; thread < team.threads; ++thread) {
        const Part part = part_of(p.elements, team.share, team.held, rank, thread, team.threads);
        scatter<Ty, kGeneral>(p, b, part, hold[rank].data(), w / divisor[b]);
      }
    }
    results.append(py::make_tuple(sums.distance, sums.energy, sums.gap, sums.nonfinite, sums.kept, w));
  }
  return results;
}

template <class Ty>
py::list run(bool general, const Problem& p, const Team& team, const std::vector<double>& h,
             const std::vector<double>& divisor) {
  if constexpr (std::is_same_v<typename Ty::Student, AnyType>) {
    return run<Ty, true>(p, team, h, divisor);
  } else {
    return general ? run<Ty, true>(p, team, h, divisor) : run<Ty, false>(p, team, h, divisor);
  }
}

py::list run_named(const std::string& loads, bool general, const py::dict& call, int64_t share, int held, int blocks,
                   int threads, const std::vector<double>& h, const std::vector<double>& divisor) {
  const Problem p = problem(call);
  const Team team{share, held, blocks, threads};
  if (loads == "bf16") return run<Types<Bf16, Bf16, float>>(general, p, team, h, divisor);
  if (loads == "f16") return run<Types<Half, Half, float>>(general, p, team, h, divisor);
  if (loads == "f32") return run<Types<float, float, float>>(general, p, team, h, divisor);
  if (loads == "bf16_f32") return run<Types<Bf16, float, float>>(general, p, team, h, divisor);
  if (loads == "f16_f32") return run<Types<Half, float, float>>(general, p, team, h, divisor);
  if (loads == "any_f32") return run<Types<AnyType, AnyType, float>>(true, p, team, h, divisor);
  if (loads == "any_f64") return run<Types<AnyType, AnyType, double>>(true, p, team, h, divisor);
  throw py::value_error("loads: " + loads);
}

// The elements that one thread visits, in its order: (element of the sample, whether its vector is held).
template <int V>
std::vector<std::pair<int64_t, bool>> visited(const Part& part, bool aligned) {
  Problem p{};
  p.aligned = aligned;
  const Vectors vectors = vectors_of<V>(p, part);
  std::vector<std::pair<int64_t, bool>> found;
  for (int v = part.thread; v < vectors.all; v += part.threads) {
    if (v < vectors.whole) {
      for (int k = 0; k < V; ++k) found.emplace_back(part.begin + static_cast<int64_t>(v) * V + k, v < part.held);
    } else {
      for_elements<V>(part, v, [&](int at) { found.emplace_back(part.begin + at, v < part.held); });
    }
  }
  return found;
}

template <int W>
std::vector<int64_t> entries(int64_t rows, int64_t inner, int64_t i) {
  const Table table{nullptr, DType::f32, 0, rows, inner};
  std::vector<int64_t> found;
  for_entries<W>(table, i, [&](int, int64_t entry) { found.push_back(entry); });
  return found;
}

}  // namespace

PYBIND11_MODULE(fdkernels_host, m) {
  m.def("run", &run_named);
  m.def("part", [](int64_t elements, int64_t share, int rank) {
    const Part part = part_of(elements, share, 0, rank, 0, 1);
    return std::make_pair(part.begin, part.end);
  });
  m.def("visited",
        [](int vector, int64_t elements, int64_t share, int held, int rank, int thread, int threads, bool aligned) {
          const Part part = part_of(elements, share, held, rank, thread, threads);
          return vector == 8   ? visited<8>(part, aligned)
                 : vector == 4 ? visited<4>(part, aligned)
                               : visited<2>(part, aligned);
        });
  m.def("entries", [](int vector, int64_t rows, int64_t inner, int64_t i) {
    return vector == 8   ? entries<8>(rows, inner, i)
           : vector == 4 ? entries<4>(rows, inner, i)
                         : entries<2>(rows, inner, i);
  });
  m.def("kept_entries", [](const py::object& mask, int64_t rows, int64_t first, int64_t step) {
    return kept_entries(table(mask), rows, first, step);
  });
  m.def("divided", [](int64_t i, int64_t by) { return divided(i, by); });
}
