// The next iterate of each sample, by the formulas of the solvers of the same names.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include "rows.h"

namespace implicitcore {

// An iterate of one sample.
template <class T>
struct Row {
  const T *z, *fz, *g;  // g is the residual
  int64_t n, sample;
  Real<T> size;  // |g|
  bool grown;    // more than doubled
};

// The same of all samples.
struct Iterates {
  at::Tensor z, fz, g;
};

// What all samples have in common, and the memory of each.
template <class T>
class Update {
 public:
  virtual ~Update() = default;
  // The residual is read, and so to be written.
  virtual bool reads_residual() const { return true; }
  // f(z) itself is the next iterate.
  virtual bool plain() const { return false; }
  // Before the samples of an iteration.
  virtual void begin(const Iterates& now) {}
  // Write the next iterate of one sample; samples may be on several threads.
  virtual void step(const Row<T>& now, T* next) = 0;
  // After them.
  virtual void end() {}
};

// As torch.lerp.
template <class T>
inline void lerp(const T* z, const T* fz, Real<T> weight, T* out, int64_t n) {
  using R = Real<T>;
  const bool near = weight < R(0.5);
  const R share = near ? weight : weight - 1;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const R from = static_cast<R>(z[i]), to = static_cast<R>(fz[i]);
    out[i] = static_cast<T>((near ? from : to) + share * (to - from));
  }
}

template <class T>
class Picard : public Update<T> {
 public:
  explicit Picard(double damping) : damping_(damping) {}
  bool plain() const override { return damping_ == 1; }
  bool reads_residual() const override { return false; }

  void step(const Row<T>& now, T* next) override {
    if (plain()) {
      std::copy(now.fz, now.fz + now.n, next);
    } else {
      lerp(now.z, now.fz, static_cast<Real<T>>(damping_), next, now.n);
    }
  }

 private:
  double damping_;
};

// Broyden's good method: the steps since the last restart, factor by factor. With t_j = s_j / |s_j|^2,
// -B is the product of all I + s_{j+1} t_j^T; the next step is d / (1 - c) with the last factor's c.
template <class T>
class Broyden : public Update<T> {
  using R = Real<T>;

 public:
  Broyden(const at::Tensor& z, int64_t memory)
      : steps_(z, memory + 1, z.size(1)), squares_(z.size(0) * (memory + 1)),
        kept_(z.size(0) * (memory + 1)) {}

  void begin(const Iterates&) override {
    if (steps_.count == steps_.depth) steps_.count = 0;
  }

  void step(const Row<T>& now, T* next) override {
    const int64_t first = now.sample * steps_.depth, newest = steps_.count - 1, n = now.n;
    R* __restrict d = scratch<R>(n);
    const T* __restrict g = now.g;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) d[i] = static_cast<R>(g[i]);
    R scale = 1;
    if (newest >= 0) {
      const R denominator = 1 - apply(d, now.sample, newest, n);
      const bool safe = std::abs(denominator) > 10 * std::numeric_limits<R>::epsilon();
      kept_[first + newest] = safe;
      if (safe) scale = 1 / denominator;
    }
    T* __restrict s = steps_.row(now.sample, newest + 1);
    T* __restrict to = next;
    const T* z = now.z;
    squares_[first + newest + 1] = sum<R>(n, [=](int64_t i) {
      s[i] = static_cast<T>(d[i] * scale);
      const R value = static_cast<R>(s[i]);
      to[i] = static_cast<T>(static_cast<R>(z[i]) + value);
      return value * value;
    });
  }

  void end() override { ++steps_.count; }

 private:
  Rows<T> steps_;
  std::vector<R> squares_;
  std::vector<uint8_t> kept_;

  // The factors that are known, in place; the coefficient of the newest. One pass over each row.
  R apply(R* __restrict d, int64_t sample, int64_t newest, int64_t n) {
    const int64_t first = sample * steps_.depth;
    const T* __restrict first_row = steps_.row(sample, 0);
    double product = sum<R>(n, [=](int64_t i) { return static_cast<R>(first_row[i]) * d[i]; });
    for (int64_t j = 0; j < newest; ++j) {
      const R c = kept_[first + j] ? share(product, first + j) : 0;
      product = add_row(d, c, steps_.row(sample, j + 1), n);
    }
    return share(product, first + newest);
  }

  R share(double product, int64_t place) const {
    const R square = squares_[place];
    return static_cast<R>(product) / (square == 0 ? R(1) : square);
  }
};

}  // namespace implicitcore
