// The element loops of the op fdiv. Each pass reads its inputs once, in blocks that stay in L1; a sample's second pass
// (apply) finds them in cache. Half precision is converted into block buffers on load, or in registers if all inputs
// are bfloat16, and rounded once on store. Coefficients, multipliers and masks that runs of elements share cost nothing
// per element.
//
// Keep functions in the unnamed namespace: see core/numbers.h.

#include "fdiv/cpu/loops.h"

#include "core/cpu/blocks.h"
#include "fdiv/math.h"

namespace fdkernels::FDKERNELS_ISA {

namespace {

// ---- a block's operands

// One block of every operand; an absent one has its neutral value. The tables' values (a, c, multiplier, keep) are used
// only if elements do not share entries (has_runs).
template <class T>
struct Block {
  const T *x = nullptr, *tau = nullptr, *f = nullptr, *noisy = nullptr;
  alignas(64) T x_buffer[kBlock], tau_buffer[kBlock], f_buffer[kBlock], noisy_buffer[kBlock], uncond_buffer[kBlock];
  alignas(64) double a[kBlock], c[kBlock];
  alignas(64) T multiplier[kBlock];
  alignas(64) Keep<T> keep[kBlock];

  explicit Block(const Problem& p, bool with_tables) {
    if (p.is_raw() && p.noisy.data == nullptr) {
      noisy = noisy_buffer;
      for (int i = 0; i < kBlock; ++i) noisy_buffer[i] = 0;
    }
    if (!with_tables) return;
    for (int i = 0; i < kBlock; ++i) a[i] = 0, c[i] = 1, multiplier[i] = 1, keep[i] = keep_if<T>(true);
  }
};

template <class T>
const T* load_guided(const Samples& cond, const Samples& uncond, double guidance_scale, int64_t b, int64_t begin,
                     int count, T* buffer, T* uncond_buffer) {
  const T* v = load(cond, b, begin, count, buffer);
  if (uncond.data == nullptr) return v;
  const T* u = load(uncond, b, begin, count, uncond_buffer);
  const T g = static_cast<T>(guidance_scale);
  for (int i = 0; i < count; ++i) buffer[i] = guided(v[i], u[i], g);
  return buffer;
}

template <class T>
void load_samples(const Problem& p, int64_t b, int64_t begin, int count, bool read_x, Block<T>& block) {
  block.tau = load_guided(p.teacher, p.teacher_uncond, p.guidance_scale, b, begin, count, block.tau_buffer,
                          block.uncond_buffer);
  block.f =
      load_guided(p.fake, p.fake_uncond, p.fake_guidance_scale, b, begin, count, block.f_buffer, block.uncond_buffer);
  if (!read_x) return;
  block.x = load(p.student, b, begin, count, block.x_buffer);
  if (p.noisy.data != nullptr) block.noisy = load(p.noisy, b, begin, count, block.noisy_buffer);
}

template <class T>
void load_tables(const Problem& p, int64_t b, int64_t begin, int count, Block<T>& block) {
  if (has_table(p.multiplier)) expand_numbers(p.multiplier, b, begin, count, block.multiplier);
  if (p.mask.data != nullptr) expand_mask(p.mask, b, begin, count, block.keep);
  if (!p.is_raw()) return;
  for (int64_t done = 0; done < count;) {  // run by run, since a mask may vary where the levels do not
    int64_t run = count - done;
    if (has_table(p.alpha)) run = run_at(p.alpha, begin + done, run);
    if (has_table(p.sigma)) run = run_at(p.sigma, begin + done, run);
    const Map map = map_at(p, b, begin + done);
    for (const int64_t end = done + run; done < end; ++done) block.a[done] = map.a, block.c[done] = map.c;
  }
}

// Whether table entries are shared by runs of elements that are worth loops of their own. If not, every element is
// treated as having its own entries.
bool has_runs(const Problem& p) {
  for (const Table* table : {&p.alpha, &p.sigma, &p.multiplier, &p.mask}) {
    if (has_table(*table) && table->inner < kShortestRun) return false;
  }
  return true;
}

// Lowers `count` to the number of elements from i on that share table entries.
void lower_to_run(const Problem& p, int64_t i, int64_t* count) {
  for (const Table* table : {&p.alpha, &p.sigma, &p.multiplier, &p.mask}) {
    if (has_table(*table)) *count = run_at(*table, i, *count);
  }
}

// ---- its sums and its gradient

enum class Error { unread, of_x0, of_prediction };  // x - x0: x is not read; tau is x0; tau is a raw prediction

Error which_error(const Problem& p) {
  if (!p.dmd_scale && !p.with_stats) return Error::unread;
  return p.is_raw() ? Error::of_prediction : Error::of_x0;
}

// The error of element i.
template <class T, Error kError, class Stored>
auto error_at(const Stored* x, const Stored* tau, const Stored* noisy, double a, double c, int i) {
  if constexpr (kError == Error::unread) return T(0);
  if constexpr (kError == Error::of_x0) return number(x[i]) - number(tau[i]);
  if constexpr (kError == Error::of_prediction) {
    return error_of(static_cast<double>(number(x[i])), static_cast<double>(number(noisy[i])),
                    static_cast<double>(number(tau[i])), a, c);
  }
}

// Sums over elements [0, count) of what each adds.
template <int kLanes, class AddedAt>
Sums sum(int count, const AddedAt& added_at) {
  const Totals totals = sum_in_lanes<kLanes>(count, [&](int i) {
    const auto each = added_at(i);
    return Addends{each.distance, each.energy, each.gap};
  });
  Sums sums;
  sums.distance = totals.first, sums.energy = totals.second, sums.gap = totals.third;
  return sums;
}

// Calls use.operator()<error>().
template <class Use>
Sums with_error(Error error, const Use& use) {
  if (error == Error::unread) return use.template operator()<Error::unread>();
  if (error == Error::of_x0) return use.template operator()<Error::of_x0>();
  return use.template operator()<Error::of_prediction>();
}

// Sums of f - tau and x - x0. All elements share c and the multiplier; the caller multiplies the sums by them.
template <class T, class Stored>
Sums reduce_run(Error error, const Stored* x, const Stored* tau, const Stored* f, const Stored* noisy,
                const Element& run, int count) {
  const double a = run.a, c = run.c;
  return with_error(error, [&]<Error kError>() {
    return sum<kLanes<Stored>>(count, [&](int i) {
      const T gap = gap_of(T(number(tau[i])), T(number(f[i])), T(1));
      return added(gap, gap, error_at<T, kError>(x, tau, noisy, a, c, i), true);
    });
  });
}

// shared: m c. Do not multiply it by w first: their product may leave T's range where the gradient does not.
template <class T, class Stored>
void apply_run(const Stored* tau, const Stored* f, int64_t count, T w, T shared, Stored* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) put(w * gap_of(T(number(tau[i])), T(number(f[i])), shared), out[i]);
}

// For elements with entries of their own. kPredicted: c is one of them.
template <class T, bool kPredicted>
T gap_at(const Block<T>& block, int i) {
  return gap_of(block.tau[i], block.f[i], kPredicted ? static_cast<T>(block.c[i]) : T(1));
}

template <class T>
Sums reduce_entries(Error error, const Block<T>& block, int count, bool kept_only) {
  const Keep<T> always = keep_if<T>(!kept_only);
  return with_error(error, [&]<Error kError>() {
    return sum<kLanes<T>>(count, [&](int i) {
      const T gap = gap_at<T, kError != Error::of_x0>(block, i);
      const Keep<T> counts{block.keep[i].bits | always.bits};  // what is not finite is added again, carefully
      return added(gap, kept_or_zero(block.multiplier[i] * gap, block.keep[i]),
                   error_at<T, kError>(block.x, block.tau, block.noisy, block.a[i], block.c[i], i), counts);
    });
  });
}

template <class T, bool kPredicted>
void apply_entries(const Block<T>& block, int count, T w, T* out) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    out[i] = kept_or_zero(w * (block.multiplier[i] * gap_at<T, kPredicted>(block, i)), block.keep[i]);
  }
}

// Whether every N-sized operand is bfloat16 without guidance: it is then converted in registers, without buffers.
bool is_bf16(const Problem& p) {
  for (const Samples* samples : {&p.student, &p.teacher, &p.fake, &p.noisy}) {
    if (samples->data != nullptr && samples->dtype != DType::bf16) return false;
  }
  return p.teacher_uncond.data == nullptr && p.fake_uncond.data == nullptr && !(p.is_raw() && p.noisy.data == nullptr);
}

const Bf16* bf16_at(const Samples& samples, int64_t b, int64_t begin) {
  return samples.data == nullptr ? nullptr : static_cast<const Bf16*>(samples.data) + b * samples.batch_stride + begin;
}

// The Loop that core/cpu/blocks.h asks for.
template <class T>
class Loop {
 public:
  using Sums = fdkernels::Sums;

  Loop(const Problem& p, int64_t b)
      : p_(p), b_(b), error_(which_error(p)), runs_(has_runs(p)), bf16_(runs_ && is_bf16(p)), block_(p, !runs_) {}

  void enter(int64_t at, int64_t* count) {
    if (!runs_) return;
    lower_to_run(p_, at, count);
    run_ = element_at(p_, b_, at);
  }

  bool sum(int64_t at, int count, Sums& sums) {
    const bool read_x = error_ != Error::unread;
    if (!bf16_) load_samples(p_, b_, at, count, read_x, block_);
    if (!runs_) {
      load_tables(p_, b_, at, count, block_);
      sums = reduce_entries(error_, block_, count, p_.kept_only);
      int kept = 0;
      for (int i = 0; i < count; ++i) kept |= block_.keep[i].bits != 0;
      sound_ = trustworthy<T>(sums.energy, sums.gap, kept == 0 ? 0.0 : sums.gap);
      return sound_ && is_finite(sums.distance);
    }
    sums = bf16_ ? reduce_run<T>(error_, bf16_at(p_.student, b_, at), bf16_at(p_.teacher, b_, at),
                                 bf16_at(p_.fake, b_, at), bf16_at(p_.noisy, b_, at), run_, count)
                 : reduce_run<T>(error_, block_.x, block_.tau, block_.f, block_.noisy, run_, count);
    sound_ = trustworthy<T>(sums.energy, sums.gap, run_.keep ? sums.gap : 0.0);
    const bool finite = is_finite(sums.distance);
    const double factor = run_.multiplier * run_.c;
    sums.energy *= run_.keep ? factor * factor : 0.0;
    sums.gap *= magnitude(run_.c);
    if (!run_.keep && p_.kept_only) sums.gap = sums.distance = 0;
    sound_ = sound_ && is_finite(sums.energy) && is_finite(sums.gap);
    return sound_ && finite;
  }

  void sum_carefully(int64_t at, int count, Sums& sums) {
    const bool read_x = error_ != Error::unread;
    if (bf16_) load_samples(p_, b_, at, count, read_x, block_);
    const Sums first = sums;
    sums = {};
    for (int i = 0; i < count; ++i) {
      Element e = element_at(p_, b_, at + i);
      e.tau = block_.tau[i], e.f = block_.f[i];
      if (read_x) e.x = block_.x[i];
      if (read_x && p_.noisy.data != nullptr) e.noisy = block_.noisy[i];
      add_carefully(sums, e, p_, read_x);
    }
    // Without the dmd scale x is read only for statistics: it must not change a bit of the loss.
    if (sound_ && !p_.dmd_scale) sums.energy = first.energy, sums.gap = first.gap;
  }

  // Do not share this with samples.cpp: the linker may keep this AVX-512 copy for every CPU.
  void add(Sums& total, const Sums& sums) const {
    total.distance += sums.distance;
    total.energy += sums.energy;
    total.gap += sums.gap;
    total.nonfinite |= sums.nonfinite;
  }

  void store(int64_t at, int count, T w) {
    const int64_t size = size_of(p_.student.dtype);
    void* gradient = static_cast<char*>(p_.gradient) + (b_ * p_.elements + at) * size;
    const T factor = static_cast<T>(run_.multiplier * run_.c);
    if (!run_.keep) {
      std::memset(gradient, 0, count * size);
      return;
    }
    if (bf16_) {
      apply_run(bf16_at(p_.teacher, b_, at), bf16_at(p_.fake, b_, at), count, w, factor, static_cast<Bf16*>(gradient));
      return;
    }
    const bool direct = p_.student.dtype == kNative<T>;
    alignas(64) T buffer[kBlock];
    T* out = direct ? static_cast<T*>(gradient) : buffer;
    load_samples(p_, b_, at, count, false, block_);
    if (runs_) {
      apply_run(block_.tau, block_.f, count, w, factor, out);
    } else {
      load_tables(p_, b_, at, count, block_);
      p_.is_raw() ? apply_entries<T, true>(block_, count, w, out) : apply_entries<T, false>(block_, count, w, out);
    }
    if (!direct) narrow(out, count, gradient, p_.student.dtype, 0);
  }

 private:
  const Problem& p_;
  const int64_t b_;
  const Error error_;
  const bool runs_, bf16_;
  bool sound_ = true;  // whether a block's sums other than the distance can be trusted
  Element run_;        // the tables' values for a run of elements that share entries
  Block<T> block_;
};

template <class T>
Sums reduce(const Problem& p, int64_t b, int64_t begin, int64_t end) {
  Loop<T> loop(p, b);
  return sum_blocks(loop, begin, end);
}

template <class T>
void apply(const Problem& p, int64_t b, int64_t begin, int64_t end, double coefficient) {
  Loop<T> loop(p, b);
  store_blocks(loop, begin, end, static_cast<T>(coefficient));
}

}  // namespace

const Loops loops = {reduce<float>, reduce<double>, apply<float>, apply<double>};

}  // namespace fdkernels::FDKERNELS_ISA
