// The op implicit on CPU tensors, registered through libtorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "core/cpu/isa.h"
#include "core/cpu/passes.h"
#include "implicit/cpu/loops.h"
#include "implicit/operands.h"
#include "torch/cpu_threads.h"

namespace {

using namespace fdkernels::ops;
using fdkernels::Implicit;
using fdkernels::ImplicitSlopes;
using fdkernels::ImplicitSums;

// The Op that core/cpu/passes.h asks for.
class Batch {
 public:
  using Sums = ImplicitSums;

  Batch(const ImplicitArguments& arguments, const Implicit& call)
      : call_(call),
        loops_(fdkernels::cpu::by_isa(fdkernels::baseline::implicit_loops, fdkernels::v3::implicit_loops,
                                      fdkernels::v4::implicit_loops)),
        divisors_(fdkernels::divisors_of(call)),
        k_(values(arguments.score_scale, arguments.fixed_score_scale, "score_scale")),
        h1_(values(arguments.weight, arguments.fixed_weight, "weight")),
        h2_(values(arguments.square_weight, arguments.fixed_square_weight, "square_weight")),
        sums_(call.batch),
        slopes_(call.batch) {}

  Sums reduce(int64_t b, int64_t begin, int64_t end) const {
    return loops_.reduce(call_, b, begin, end);
  }

  void add(int64_t b, const Sums& part) {
    sums_[b].distance += part.distance;
    sums_[b].square += part.square;
    sums_[b].cross += part.cross;
  }

  void finish(int64_t b) {
    slopes_[b] = fdkernels::slopes_of(call_, sums_[b], {k_[b], h1_[b], h2_[b]});
  }

  bool stores() const {
    return call_.stores();
  }

  void store(int64_t b, int64_t begin, int64_t end) const {
    const ImplicitSlopes& of = slopes_[b];
    loops_.apply(call_, b, begin, end, of.p / divisors_.loss, of.q / divisors_.loss, divisors_.power);
  }

  void results(const ImplicitTensors& out) const {
    std::vector<double> losses;
    for (const ImplicitSlopes& of : slopes_) losses.push_back(of.loss);
    out.set_losses(losses, divisors_.loss);
    for (int input = 0; input < fdkernels::kImplicitInputs; ++input) out.of(input).set_unscale(1 / divisors_.power);
  }

 private:
  std::vector<double> values(const OptionalTensor& given, double fixed, const char* name) const {
    return given ? to_double(*given, call_.batch, name) : std::vector<double>(call_.batch, fixed);
  }

  const Implicit& call_;
  const fdkernels::ImplicitLoops& loops_;
  const fdkernels::ImplicitDivisors divisors_;
  const std::vector<double> k_, h1_, h2_;
  std::vector<Sums> sums_;
  std::vector<ImplicitSlopes> slopes_;
};

ImplicitResults implicit(const ImplicitArguments& arguments) {
  Implicit call = implicit_of(arguments);
  Batch batch(arguments, call);
  const ImplicitTensors out(arguments, call);
  int64_t bytes = 0;
  for (const fdkernels::Samples& input : call.inputs) bytes += call.elements * fdkernels::size_of(input.dtype);
  fdkernels::cpu::pass_samples(batch, call.batch, call.elements, bytes, threads());
  batch.results(out);
  return out.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fdkernels, CPU, m) {
  m.impl("implicit_native", (&boxed<ImplicitArguments, ImplicitResults, &implicit>));
}
