// A second op over the skeletons of the CPU's kernels: y = x / |x| of each sample, in float32. It shows that
// core/cpu/passes.h and core/cpu/blocks.h know nothing of the op fdiv.
#include <cmath>
#include <thread>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/passes.h"

namespace {

using namespace fdkernels;

struct Sums {
  double squares = 0;
};

class Loop {
 public:
  using Sums = ::Sums;

  Loop(const Samples& x, float* y, int64_t b, int64_t elements) : x_(x), y_(y + b * elements), b_(b) {}

  void enter(int64_t, int64_t*) {}

  bool sum(int64_t at, int count, Sums& sums) {
    const float* x = load(x_, b_, at, count, buffer_);
    float squares = 0;
    for (int i = 0; i < count; ++i) squares += x[i] * x[i];
    sums.squares = squares;
    return is_finite(squares);
  }

  void sum_carefully(int64_t at, int count, Sums& sums) {
    const float* x = load(x_, b_, at, count, buffer_);
    sums = {};
    for (int i = 0; i < count; ++i) sums.squares += static_cast<double>(x[i]) * x[i];
  }

  void add(Sums& total, const Sums& sums) const {
    total.squares += sums.squares;
  }

  void store(int64_t at, int count, double factor) {
    const float* x = load(x_, b_, at, count, buffer_);
    for (int i = 0; i < count; ++i) y_[at + i] = static_cast<float>(x[i] * factor);
  }

 private:
  const Samples& x_;
  float* const y_;
  const int64_t b_;
  float buffer_[kBlock];
};

struct Op {
  using Sums = ::Sums;

  Samples x;
  float* y;
  int64_t elements;
  std::vector<double> squares;

  Sums reduce(int64_t b, int64_t begin, int64_t end) const {
    Loop loop(x, y, b, elements);
    return sum_blocks(loop, begin, end);
  }
  void add(int64_t b, const Sums& sums) {
    squares[b] += sums.squares;
  }
  void finish(int64_t) {}
  bool stores() const {
    return true;
  }
  void store(int64_t b, int64_t begin, int64_t end) const {
    Loop loop(x, y, b, elements);
    store_blocks(loop, begin, end, 1 / std::sqrt(squares[b]));
  }
};

// As many pieces as there are threads, at once.
void side_by_side(int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < 3; ++k) threads.emplace_back(body, count * k / 3, count * (k + 1) / 3, context);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

// dtype: of x, in the order of DType.
extern "C" void normalize(const void* x, int dtype, float* y, int64_t batch, int64_t elements, int64_t threads) {
  const DType stored = static_cast<DType>(dtype);
  Op op{{x, stored, elements}, y, elements, std::vector<double>(batch)};
  cpu::pass_samples(op, batch, elements, elements * size_of(stored), {threads, side_by_side});
}
