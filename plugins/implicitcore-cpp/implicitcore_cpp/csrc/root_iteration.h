// One iteration of a root solver: residual, norms, stop test, freeze, best iterate and update.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include "kernels.h"
#include "stop_test.h"
#include "updates.h"

namespace implicitcore {

// Tensors that are used again as soon as nobody else holds their memory: fresh memory costs more
// than a pass over it. Each is handed out as a tensor and a storage of its own over that memory: what
// Python has seen is held by its object for as long as C++ holds it, and would never be free. Python
// sees the memory itself too where a mode of torch watches what is made, as one that counts bytes
// does: so who has it is counted here, not by torch.
class Buffers {
 public:
  at::Tensor take(const at::Tensor& like) {
    for (const Buffer& each : all_) {
      if (each.holders.use_count() == 1) return another(each);
    }
    all_.push_back({at::empty_like(like), std::make_shared<char>()});
    return another(all_.back());
  }

 private:
  struct Buffer {
    at::Tensor memory;
    std::shared_ptr<char> holders;  // this, and each tensor that was handed out and lives
  };
  std::vector<Buffer> all_;

  static at::Tensor another(const Buffer& buffer) {
    return at::from_blob(
        buffer.memory.mutable_data_ptr(), buffer.memory.sizes(), buffer.memory.strides(),
        [held = buffer](void*) mutable { held = {}; }, buffer.memory.options());
  }
};

// What RootResult of implicitcore has.
struct Result {
  at::Tensor z, residual, limit, relative, status, steps, start_norm, ceiling, size, last;
  bool stopped_apart, all_met;
};

class RootIteration {
 public:
  virtual ~RootIteration() = default;
  virtual std::optional<at::Tensor> advance(at::Tensor z, at::Tensor fz,
                                            std::optional<at::Tensor> g, bool last) = 0;
  virtual at::Tensor size() const = 0;
  virtual bool between(double least, double most) const = 0;
  // Norms in the units of the largest entry, where a square is beyond the dtype: where nobody looks
  // at them and begins the solve anew in other units.
  virtual void take_whole_range() = 0;
  // Solve in units of each sample, [batch, 1], that its sums need at a start of this size; undefined
  // where none does. Powers of two: nothing is rounded.
  virtual at::Tensor take_units(const at::Tensor& z, const at::Tensor& fz) = 0;
  virtual Result result() const = 0;
};

template <class T, class V>
inline at::Tensor tensor_of(const std::vector<V>& values, at::ScalarType dtype) {
  at::Tensor out = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions(dtype));
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<T>());
  return out;
}

// The iterates of a solve as they are judged: the stop test, and the best of each sample.
template <class T>
class Judged : public RootIteration {
 protected:
  using R = Real<T>;

 public:
  Judged(StopTest<R> test, bool fixed) : test_(std::move(test)), fixed_(fixed) {}

  at::Tensor size() const override { return real(test_.size); }

  bool between(double least, double most) const override {
    for (const R value : test_.update) {
      if (!(value >= static_cast<R>(least) && value <= static_cast<R>(most))) return false;
    }
    return true;
  }

  void take_whole_range() override { whole_range_ = true; }

  at::Tensor take_units(const at::Tensor& z, const at::Tensor& fz) override {
    const at::Tensor from = z.contiguous(), to = fz.contiguous();
    const int64_t n = z.size(1);
    std::vector<R> units(test_.batch());
    for (int64_t b = 0; b < test_.batch(); ++b) {
      const T *a = from.template const_data_ptr<T>(), *c = to.template const_data_ptr<T>();
      units[b] = unit(std::max(largest<R>(a + b * n, n), largest<R>(c + b * n, n)));
    }
    if (std::all_of(units.begin(), units.end(), [](R each) { return each == 1; })) return {};
    test_.take_units(units);
    return real(units).unsqueeze(1).to(z.scalar_type());
  }

  Result result() const override {
    std::vector<int8_t> status(test_.failure);
    std::vector<int64_t> steps(test_.steps);
    for (int64_t b = 0; b < test_.batch(); ++b) {
      if (!test_.active[b]) continue;
      status[b] = outcome(b);
      steps[b] = test_.count;
    }
    std::vector<R> relative(test_.batch());
    for (int64_t b = 0; b < test_.batch(); ++b) {
      relative[b] = test_.best_norm[b] / test_.best_limit[b] * test_.tol();
    }
    return {best_, real(test_.best_norm), real(test_.best_limit), real(relative),
            tensor_of<int8_t>(status, at::kChar), tensor_of<int64_t>(steps, at::kLong),
            real(test_.start_norm), real(test_.ceiling), real(test_.size), last_,
            test_.stopped_apart, test_.remaining == 0 && !test_.any_failed};
  }

 protected:
  StopTest<R> test_;
  at::Tensor best_, last_;
  Buffers iterates_;

  // What became of a sample that the stop test did not stop.
  virtual int8_t outcome(int64_t b) const { return max_steps; }

  void check_shapes(const at::Tensor& z, const at::Tensor& fz,
                    const std::optional<at::Tensor>& g) const {
    TORCH_CHECK(z.dim() == 2 && z.size(0) == test_.batch() && fz.sizes() == z.sizes() &&
                    fz.scalar_type() == z.scalar_type() && (!g || g->sizes() == z.sizes()),
                "f(z) must be shaped like z, [batch, n]");
  }

  // Take the norms of a residual, which is f(z) - z where g is null, and of f(z). It is written to
  // `out` where that is given.
  void measure(int64_t b, const T* z, const T* fz, const T* g, int64_t n, T* out = nullptr) {
    const Squares found = g ? Squares{sum_of_squares<R>(g, n), fixed_ ? 0 : sum_of_squares<R>(fz, n)}
                            : squares(fz, z, out, !fixed_, n);
    R size = root<R>(found.residual), update = fixed_ ? test_.fixed(b) : root<R>(found.update);
    const bool beyond = whole_range_ && std::isinf(size);
    if ((size < test_.small() || beyond) && test_.active[b]) {
      std::vector<T> value(n);
      subtract(fz, z, value.data(), n);
      size = scaled_norm<R>(g ? g : value.data(), n);
      if (size > 0 && update < test_.small() && !fixed_) update = scaled_norm<R>(fz, n);
    }
    if (whole_range_ && !fixed_ && std::isinf(update)) update = scaled_norm<R>(fz, n);
    test_.size[b] = size;
    test_.update[b] = update;
  }

  // The best iterate: z itself where it is that of every sample, for no more than a reference.
  void keep(const at::Tensor& z) {
    if (test_.all_improved) {
      best_ = z;
      owned_ = false;
      return;
    }
    const at::Tensor before = best_.defined() ? best_ : z;
    if (!owned_) best_ = at::empty_like(z);
    T* best = best_.mutable_data_ptr<T>();
    const T *old = before.const_data_ptr<T>(), *now = z.const_data_ptr<T>();
    for (int64_t b = 0; b < test_.batch(); ++b) {
      if (owned_ && !test_.improved[b]) continue;
      copy_row(test_.improved[b] ? now : old, best, b, z.size(1));
    }
    owned_ = true;
  }

  static void copy_row(const T* from, T* to, int64_t b, int64_t n) {
    std::copy(from + b * n, from + (b + 1) * n, to + b * n);
  }

 private:
  bool fixed_;  // what the tolerance is relative to is known, and stands in for |f(z)|
  bool whole_range_ = false;
  bool owned_ = false;  // nobody else has seen `best_`

  // As misfits and power_of_two of implicitcore.
  static R unit(R size) {
    using Limits = std::numeric_limits<R>;
    const R low = std::sqrt(Limits::min()) / Limits::epsilon();
    const R high = std::sqrt(Limits::max()) * R(1e-8);
    const bool fits = !(size > 0) || !std::isfinite(size) || (size >= low && size <= high);
    return fits ? R(1) : std::ldexp(R(1), std::ilogb(size));
  }

  static at::Tensor real(const std::vector<R>& values) {
    return tensor_of<R>(values, c10::CppTypeToScalarType<R>::value);
  }
};

template <class T>
class Iteration : public Judged<T> {
  using typename Judged<T>::R;
  using Judged<T>::test_;
  using Judged<T>::last_;
  using Judged<T>::iterates_;

 public:
  Iteration(StopTest<R> test, std::unique_ptr<Update<T>> update, bool fixed)
      : Judged<T>(std::move(test), fixed), update_(std::move(update)) {}

  std::optional<at::Tensor> advance(at::Tensor z, at::Tensor fz, std::optional<at::Tensor> g,
                                    bool last) override {
    this->check_shapes(z, fz, g);
    z = z.contiguous();
    fz = fz.contiguous();
    const bool writes = !g && update_->reads_residual();
    at::Tensor value = g ? g->contiguous() : writes ? residual(z) : at::Tensor();
    rows_ = {z.const_data_ptr<T>(), fz.const_data_ptr<T>(),
             value.defined() ? value.const_data_ptr<T>() : nullptr, z.size(1)};
    T* out = writes ? value.mutable_data_ptr<T>() : nullptr;
    each([&](int64_t b) {
      const Row<T> now = row(b);
      T* to = out ? out + b * now.n : nullptr;
      this->measure(b, now.z, now.fz, out ? nullptr : now.g, now.n, to);
    });
    const bool done = test_.check();
    this->keep(z);
    last_ = z;
    if (done || last) return std::nullopt;
    if (update_->plain() && test_.remaining == test_.batch()) return fz;
    return next({z, fz, value});
  }

 private:
  struct Pointers {
    const T *z, *fz, *g;
    int64_t n;
  };

  std::unique_ptr<Update<T>> update_;
  Pointers rows_;
  at::Tensor residuals_[2];  // of this iterate and of the last: no update looks further back

  at::Tensor residual(const at::Tensor& z) {
    at::Tensor& found = residuals_[test_.count % 2];
    if (!found.defined()) found = at::empty_like(z);
    return found;
  }

  template <class Work>
  void each(Work work) {
    each_sample(test_.batch(), rows_.n, work);
  }

  Row<T> row(int64_t b) const {
    const int64_t at = b * rows_.n;
    return {rows_.z + at,  rows_.fz + at, rows_.g ? rows_.g + at : nullptr, rows_.n, b,
            test_.size[b], test_.any_grown && test_.grown[b]};
  }

  at::Tensor next(const Iterates& now) {
    at::Tensor out = iterates_.take(now.z);
    T* next = out.mutable_data_ptr<T>();
    update_->begin(now);
    each([&](int64_t b) {
      if (test_.active[b]) {
        update_->step(row(b), next + b * rows_.n);
      } else {
        this->copy_row(rows_.z, next, b, rows_.n);
      }
    });
    update_->end();
    return out;
  }
};

}  // namespace implicitcore
