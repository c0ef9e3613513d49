// A step of Adams' predictor-corrector method of variable step and order, by the formulas of Adams.
#pragma once

#include <cmath>
#include <memory>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels.h"

namespace implicitcore {

// A step so many times as long as the last is of order 1, as in the reference.
constexpr double LONGER = 1e3;

// Nodes and weights of Gauss on [0, 1].
struct Gauss {
  std::vector<double> nodes, weights;

  explicit Gauss(int64_t count) : nodes(count), weights(count) {
    for (int64_t k = 0; k < count; ++k) {
      double x = std::cos(M_PI * (k + 0.75) / (count + 0.5)), slope = 1;
      for (int iteration = 0; iteration < 50; ++iteration) {  // Newton, on Legendre's polynomial
        double before = 1, value = x;
        for (int64_t j = 2; j <= count; ++j) {
          const double next = ((2 * j - 1) * x * value - (j - 1) * before) / j;
          before = value;
          value = next;
        }
        slope = count * (x * value - before) / (x * x - 1);
        const double move = value / slope;
        x -= move;
        if (std::abs(move) < 1e-15) break;
      }
      nodes[k] = (1 + x) / 2;
      weights[k] = 1 / ((1 - x * x) * slope * slope);
    }
  }
};

// The coefficients of one step of one sample.
template <class R>
struct Coefficients {
  std::vector<R> beta, g;
  int64_t order, highest;
};

class AdamsStep {
 public:
  virtual ~AdamsStep() = default;
  virtual at::Tensor end() const = 0;
  virtual std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> correct(
      at::Tensor velocity) = 0;
};

template <class T>
class Adams : public AdamsStep {
  using R = Real<T>;
  static constexpr int64_t TILE = 256;

 public:
  Adams(int64_t max_order, const at::Tensor& z, const at::Tensor& dt, const at::Tensor& differences,
        const at::Tensor& gaps, const at::Tensor& order)
      : max_order_(max_order), batch_(z.size(0)), n_(z.size(1)), rows_(gaps.size(1)),
        differences_(differences.stride(2) == 1 ? differences : differences.contiguous()),
        dt_(dt.to(c10::CppTypeToScalarType<R>::value).contiguous()), z_(at::empty_like(z)),
        gaps_(at::empty({batch_, rows_}, gaps.options())), each_(batch_) {
    const at::Tensor last = gaps.contiguous(), orders = order.contiguous(), from = z.contiguous();
    const Gauss gauss(rows_ / 2 + 1);
    const R *step = dt_.template const_data_ptr<R>(), *before = last.const_data_ptr<R>();
    const int64_t* k = orders.const_data_ptr<int64_t>();
    R* after = gaps_.template mutable_data_ptr<R>();
    const Lines<T> phi(differences_);
    T* to = z_.template mutable_data_ptr<T>();
    const T* start = from.const_data_ptr<T>();
    each_sample(batch_, n_, [&](int64_t b) {
      each_[b] = coefficients(gauss, step[b], before + b * rows_, after + b * rows_, k[b]);
      predict(each_[b], step[b], phi, b, start + b * n_, to + b * n_);
    });
  }

  at::Tensor end() const override { return z_; }

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> correct(
      at::Tensor velocity) override {
    TORCH_CHECK(velocity.sizes() == z_.sizes() && velocity.scalar_type() == z_.scalar_type(),
                "a velocity must be shaped like z, [batch, n]");
    velocity = velocity.contiguous();
    at::Tensor next = at::empty({batch_, rows_, n_}, z_.options()), error = at::empty_like(z_);
    at::Tensor order = at::empty({batch_}, at::TensorOptions(at::kLong)), power = at::empty_like(order);
    int64_t *chosen = order.mutable_data_ptr<int64_t>(), *goes = power.mutable_data_ptr<int64_t>();
    const Lines<T> phi(differences_);
    const T* v = velocity.const_data_ptr<T>();
    T *out = next.mutable_data_ptr<T>(), *miss = error.mutable_data_ptr<T>();
    const R* step = dt_.template const_data_ptr<R>();
    each_sample(batch_, n_ * rows_, [&](int64_t b) {
      const Coefficients<R>& known = each_[b];
      const std::vector<R> sizes = update(known, step[b], phi, b, v + b * n_,
                                          out + b * rows_ * n_, miss + b * n_);
      chosen[b] = choose(known, sizes);
      goes[b] = known.order + 1;
    });
    return {error, next, gaps_, order, power};
  }

 private:
  int64_t max_order_, batch_, n_, rows_;
  at::Tensor differences_, dt_, z_, gaps_;
  std::vector<Coefficients<R>> each_;

  // beta_0 .., g_0 .. and the order of the step; the distances of the last times after it.
  Coefficients<R> coefficients(const Gauss& gauss, R dt, const R* gaps, R* after, int64_t order) {
    const R size = dt == 0 ? gaps[0] : std::abs(dt);
    Coefficients<R> out{std::vector<R>(rows_), std::vector<R>(rows_ + 1)};
    out.order = size > static_cast<R>(LONGER) * gaps[0] ? 1 : std::max<int64_t>(order, 1);
    out.highest = order + 1;
    out.beta[0] = 1;
    for (int64_t j = 0; j < rows_; ++j) {
      after[j] = size + (j ? gaps[j - 1] : R(0));
      if (j + 1 < rows_) out.beta[j + 1] = out.beta[j] * (after[j] / gaps[j]);
    }
    std::vector<double> g(rows_ + 1);
    for (size_t k = 0; k < gauss.nodes.size(); ++k) {
      double product = gauss.weights[k];
      g[0] += product;
      for (int64_t j = 0; j < rows_; ++j) {
        product *= 1 - (1 - gauss.nodes[k]) * (static_cast<double>(size) / after[j]);
        g[j + 1] += product;
      }
    }
    for (int64_t j = 0; j <= rows_; ++j) out.g[j] = static_cast<R>(g[j]);
    return out;
  }

  void predict(const Coefficients<R>& known, R dt, const Lines<T>& phi, int64_t b,
               const T* __restrict z, T* __restrict to) const {
    R total[TILE];
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(TILE, n_ - begin);
      for (int64_t i = 0; i < size; ++i) total[i] = static_cast<R>(z[begin + i]);
      for (int64_t j = 0; j < known.order; ++j) {
        const T* __restrict row = phi.at(b, j) + begin;
        const R weight = known.g[j] * known.beta[j] * dt;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) total[i] += weight * static_cast<R>(row[i]);
      }
      for (int64_t i = 0; i < size; ++i) to[begin + i] = static_cast<T>(total[i]);
    }
  }

  // The differences at the new time, the error, and the norms of all differences.
  std::vector<R> update(const Coefficients<R>& known, R dt, const Lines<T>& phi, int64_t b,
                        const T* __restrict v, T* __restrict out, T* __restrict miss) const {
    std::vector<double> squares(rows_ + 1);
    const R share = known.g[known.order] * dt;
    R value[TILE];
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(TILE, n_ - begin);
      for (int64_t i = 0; i < size; ++i) value[i] = static_cast<R>(v[begin + i]);
      for (int64_t j = 0; j <= rows_; ++j) {
        if (j) {
          const T* __restrict row = phi.at(b, j - 1) + begin;
          const R weight = known.beta[j - 1];
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) value[i] -= weight * static_cast<R>(row[i]);
        }
        if (j < rows_) {
          T* __restrict to = out + j * n_ + begin;
          for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(value[i]);
        }
        if (j == known.order) {
          for (int64_t i = 0; i < size; ++i) miss[begin + i] = static_cast<T>(share * value[i]);
        }
        squares[j] += sum<R>(size, [&](int64_t i) { return value[i] * value[i]; });
      }
    }
    std::vector<R> sizes(rows_ + 1);
    for (int64_t j = 0; j <= rows_; ++j) sizes[j] = root<R>(squares[j]);
    return sizes;
  }

  // Of this order, one less and one more, that with the smallest error.
  int64_t choose(const Coefficients<R>& known, const std::vector<R>& sizes) const {
    R least = std::numeric_limits<R>::infinity();
    int64_t best = known.order - 1;
    for (int64_t k = std::max<int64_t>(known.order - 1, 1);
         k <= std::min(known.order + 1, rows_); ++k) {
      const R error = sizes[k] * known.g[k];
      if (error < least) {
        least = error;
        best = k;
      }
    }
    return std::min({best, known.highest, max_order_});
  }
};

inline std::unique_ptr<AdamsStep> adams_step(int64_t max_order, const at::Tensor& z,
                                             const at::Tensor& dt, const at::Tensor& differences,
                                             const at::Tensor& gaps, const at::Tensor& order) {
  std::unique_ptr<AdamsStep> found;
  dispatch(z, [&](auto type) {
    found = std::make_unique<Adams<decltype(type)>>(max_order, z, dt, differences, gaps, order);
  });
  return found;
}

}  // namespace implicitcore
