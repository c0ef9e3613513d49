// The Krylov spaces of GMRES: one call a product, by the formulas of Krylov of implicitcore.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include "kernels.h"

namespace implicitcore {

class KrylovSpace {
 public:
  virtual ~KrylovSpace() = default;
  virtual std::optional<at::Tensor> extend(const std::optional<at::Tensor>& product) = 0;
  virtual at::Tensor minimise() const = 0;
  virtual int64_t size() const = 0;
  virtual at::Tensor steps() const = 0;
};

template <class T>
class Krylov : public KrylovSpace {
  using R = Real<T>;
  static constexpr int64_t TILE = 256;  // entries for which all rows are read, while they are near

 public:
  Krylov(at::Tensor g, const at::Tensor& limit, int64_t most)
      : g_(g.contiguous()), batch_(g.size(0)), n_(g.size(1)), most_(most), beta_(batch_),
        bound_(batch_), length_(batch_, 1), used_(batch_), active_(batch_) {
    const at::Tensor limits = limit.contiguous();
    TORCH_CHECK(limits.numel() == batch_ &&
                    limits.scalar_type() == c10::CppTypeToScalarType<R>::value,
                "a limit for each sample, in the dtype of norms");
    const R* within = limits.template const_data_ptr<R>();
    const T* from = g_.template const_data_ptr<T>();
    each_sample(batch_, n_, [&](int64_t b) {
      beta_[b] = norm<R>(from + b * n_, n_);
      const R share = beta_[b] / within[b];
      bound_[b] = share * share;
      active_[b] = 1 < bound_[b];  // not where it is a NaN
    });
  }

  std::optional<at::Tensor> extend(const std::optional<at::Tensor>& product) override {
    if (product) {
      take(*product);
    } else if (goes_on()) {
      rows_.push_back(first());
    }
    if (!goes_on()) return std::nullopt;
    return rows_.back();
  }

  int64_t size() const override { return columns_.size(); }

  at::Tensor steps() const override {
    at::Tensor out = at::empty({batch_}, at::TensorOptions(at::kLong));
    std::copy(used_.begin(), used_.end(), out.mutable_data_ptr<int64_t>());
    return out;
  }

  at::Tensor minimise() const override {
    at::Tensor out = at::empty_like(g_);
    T* to = out.template mutable_data_ptr<T>();
    each_sample(batch_, n_ * (size() + 1), [&](int64_t b) { minimise(b, to + b * n_); });
    return out;
  }

 private:
  // What one product gives, for all samples: the inner products with the rows before, and the size
  // of what is left beside them.
  struct Column {
    std::vector<R> h, below, w;
  };

  at::Tensor g_;
  int64_t batch_, n_, most_;
  std::vector<R> beta_, bound_, length_;  // `length_` is 1 + |w|^2
  std::vector<int64_t> used_;
  std::vector<uint8_t> active_;
  std::vector<at::Tensor> rows_;  // of the basis, each [batch, n]
  std::vector<Column> columns_;

  bool goes_on() const {
    return size() < most_ && std::find(active_.begin(), active_.end(), 1) != active_.end();
  }

  const T* row(int64_t i, int64_t b) const {
    return rows_[i].template const_data_ptr<T>() + b * n_;
  }

  at::Tensor first() const {
    at::Tensor out = at::empty_like(g_);
    T* to = out.template mutable_data_ptr<T>();
    const T* from = g_.template const_data_ptr<T>();
    each_sample(batch_, n_, [&](int64_t b) {
      write(b, from + b * n_, std::max(beta_[b], std::numeric_limits<R>::min()), to + b * n_);
    });
    return out;
  }

  // The next vector of a sample; that of one which needs none is zero, as its product is then.
  template <class V>
  void write(int64_t b, const V* __restrict from, R size, T* __restrict to) const {
    if (!active_[b]) {
      std::fill(to, to + n_, static_cast<T>(R(0)));
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n_; ++i) to[i] = static_cast<T>(static_cast<R>(from[i]) / size);
  }

  void take(const at::Tensor& given) {
    TORCH_CHECK(!rows_.empty() && given.sizes() == g_.sizes() &&
                    given.scalar_type() == g_.scalar_type(),
                "a product must be shaped like g, [batch, n], in its dtype");
    const at::Tensor product = given.contiguous();
    const T* from = product.template const_data_ptr<T>();
    const int64_t depth = rows_.size();
    columns_.push_back({std::vector<R>(batch_ * depth), std::vector<R>(batch_, 1),
                        std::vector<R>(batch_)});
    const bool full = size() == most_;
    at::Tensor next = full ? at::Tensor() : at::empty_like(g_);
    T* to = full ? nullptr : next.template mutable_data_ptr<T>();
    each_sample(batch_, n_ * depth, [&](int64_t b) {
      R* rest = scratch<R>(n_);
      if (active_[b]) grow(b, from + b * n_, rest);
      if (to) write(b, rest, columns_.back().below[b], to + b * n_);
    });
    if (goes_on()) rows_.push_back(next);
  }

  // Make a product orthogonal to the rows, twice, and find the least residual.
  void grow(int64_t b, const T* product, R* rest) {
    thread_local std::vector<R> again;
    Column& last = columns_.back();
    const int64_t depth = rows_.size();
    R* h = last.h.data() + b * depth;
    again.assign(depth, 0);
    const R whole = project(b, product, h);
    for (int64_t i = 0; i < n_; ++i) rest[i] = static_cast<R>(product[i]);
    reduce(b, rest, h, again.data());
    R left = reduce(b, rest, again.data(), nullptr);
    for (int64_t j = 0; j < depth; ++j) h[j] += again[j];
    // A zero is a lucky breakdown: solved. A NaN stays one.
    left = larger(left, std::numeric_limits<R>::epsilon() * whole);
    last.below[b] = larger(left, std::numeric_limits<R>::min());
    double w = h[0];
    for (int64_t j = 1; j < depth; ++j) w -= static_cast<double>(h[j]) * columns_[j - 1].w[b];
    const R found = static_cast<R>(w) / last.below[b];
    last.w[b] = found;
    length_[b] += found * found;
    ++used_[b];
    active_[b] = length_[b] < bound_[b];
  }

  static R larger(R a, R b) { return a < b ? b : a; }

  // The inner products of a product with the rows; its norm.
  R project(int64_t b, const T* product, R* h) const {
    for (size_t j = 0; j < rows_.size(); ++j) {
      const T* q = row(j, b);
      h[j] = static_cast<R>(sum<R>(n_, [=](int64_t i) {
        return static_cast<R>(q[i]) * static_cast<R>(product[i]);
      }));
    }
    return norm<R>(product, n_);
  }

  // Take from `rest` its parts along the rows, and find what parts are left, in the same pass over
  // them; its norm.
  R reduce(int64_t b, R* rest, const R* weights, R* left) const {
    double square = 0;
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(n_ - begin, TILE);
      R* __restrict part = rest + begin;
      for (size_t j = 0; j < rows_.size(); ++j) {
        const T* __restrict q = row(j, b) + begin;
        const R weight = weights[j];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) part[i] -= weight * static_cast<R>(q[i]);
      }
      if (left) {
        for (size_t j = 0; j < rows_.size(); ++j) {
          const T* q = row(j, b) + begin;
          left[j] += static_cast<R>(
              sum<R>(size, [=](int64_t i) { return static_cast<R>(q[i]) * part[i]; }));
        }
      } else {
        square += sum<R>(size, [=](int64_t i) { return part[i] * part[i]; });
      }
    }
    return root<R>(square);
  }

  // R y = beta w / length, backwards, and the sum of the rows with these weights.
  void minimise(int64_t b, T* to) const {
    thread_local std::vector<R> y;
    const int64_t used = used_[b];
    y.resize(used);
    const R scale = beta_[b] / length_[b];
    for (int64_t j = used - 1; j >= 0; --j) {
      double value = static_cast<double>(columns_[j].w[b] * scale);
      for (int64_t k = j + 1; k < used; ++k) {
        value -= static_cast<double>(columns_[k].h[b * (k + 1) + j + 1]) * y[k];
      }
      y[j] = static_cast<R>(value / columns_[j].below[b]);
    }
    R total[TILE];
    const R none = std::isfinite(beta_[b]) ? R(0) : std::numeric_limits<R>::quiet_NaN();
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(n_ - begin, TILE);
      std::fill(total, total + size, none);
      for (int64_t j = 0; j < used; ++j) {
        const T* __restrict q = row(j, b) + begin;
        const R weight = y[j];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) total[i] += weight * static_cast<R>(q[i]);
      }
      for (int64_t i = 0; i < size; ++i) to[begin + i] = static_cast<T>(total[i]);
    }
  }
};

inline std::unique_ptr<KrylovSpace> krylov_space(const at::Tensor& g, const at::Tensor& limit,
                                                 int64_t most) {
  std::unique_ptr<KrylovSpace> found;
  dispatch(g, [&](auto type) {
    found = std::make_unique<Krylov<decltype(type)>>(g, limit, most);
  });
  return found;
}

}  // namespace implicitcore
