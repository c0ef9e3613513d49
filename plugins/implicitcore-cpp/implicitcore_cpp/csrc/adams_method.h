// The formulas of Adams' predictor-corrector method of variable step and order, of one sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "sums.h"

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

// The differences of one sample: so many entries from one to the next.
template <class T>
struct Differences {
  const T* data;
  int64_t line;
  const T* at(int64_t j) const { return data + j * line; }
};

// The states of one step of one sample, and what is written: the differences at its end, and the
// error.
template <class T>
struct Corrected {
  const T *z, *end, *velocity;
  T *differences, *error;
};

// Of the orders that may follow, one less, the same and one more.
constexpr int64_t NEAR = 3;

template <class T>
class AdamsMethod {
  using R = Real<T>;
  static constexpr int64_t TILE = 256;

 public:
  AdamsMethod(int64_t max_order, int64_t rows, int64_t n, double rtol, double atol)
      : rows_(rows), n_(n), max_order_(max_order), rtol_(rtol), atol_(atol), gauss_(rows / 2 + 1) {}

  int64_t rows() const { return rows_; }

  // beta_0 .., g_0 .. and the order of the step; the distances of the last times after it.
  void coefficients(R dt, const R* gaps, R* after, int64_t order, Coefficients<R>& out) const {
    const R size = dt == 0 ? gaps[0] : std::abs(dt);
    out.beta.resize(rows_);
    out.g.resize(rows_ + 1);
    out.order = size > static_cast<R>(LONGER) * gaps[0] ? 1 : std::max<int64_t>(order, 1);
    out.highest = order + 1;
    out.beta[0] = 1;
    for (int64_t j = 0; j < rows_; ++j) {
      after[j] = size + (j ? gaps[j - 1] : R(0));
      if (j + 1 < rows_) out.beta[j + 1] = out.beta[j] * (after[j] / gaps[j]);
    }
    double g[MOST + 1] = {}, share[MOST];
    for (int64_t j = 0; j < rows_; ++j) share[j] = static_cast<double>(size) / after[j];
    for (size_t k = 0; k < gauss_.nodes.size(); ++k) {
      double product = gauss_.weights[k];
      g[0] += product;
      for (int64_t j = 0; j < rows_; ++j) {
        product *= 1 - (1 - gauss_.nodes[k]) * share[j];
        g[j + 1] += product;
      }
    }
    for (int64_t j = 0; j <= rows_; ++j) out.g[j] = static_cast<R>(g[j]);
  }

  // The end of the step.
  void predict(const Coefficients<R>& known, R dt, const Differences<T>& phi,
               const T* __restrict z, T* __restrict to) const {
    R total[TILE];
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(TILE, n_ - begin);
      for (int64_t i = 0; i < size; ++i) total[i] = static_cast<R>(z[begin + i]);
      for (int64_t j = 0; j < known.order; ++j) {
        const T* __restrict row = phi.at(j) + begin;
        const R weight = known.g[j] * known.beta[j] * dt;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) total[i] += weight * static_cast<R>(row[i]);
      }
      for (int64_t i = 0; i < size; ++i) to[begin + i] = static_cast<T>(total[i]);
    }
  }

  // The differences at the end, and the error; which order is to follow.
  int64_t correct(const Coefficients<R>& known, R dt, const Differences<T>& phi,
                  const Corrected<T>& step) const {
    double squares[NEAR] = {};
    const R share = known.g[known.order] * dt;
    R value[TILE], unit[TILE];
    for (int64_t begin = 0; begin < n_; begin += TILE) {
      const int64_t size = std::min(TILE, n_ - begin);
      units(step.z + begin, step.end + begin, unit, size);
      for (int64_t i = 0; i < size; ++i) value[i] = static_cast<R>(step.velocity[begin + i]);
      for (int64_t j = 0; j <= rows_; ++j) {
        if (j) {
          const T* __restrict row = phi.at(j - 1) + begin;
          const R weight = known.beta[j - 1];
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) value[i] -= weight * static_cast<R>(row[i]);
        }
        if (j < rows_) {
          T* __restrict to = step.differences + j * n_ + begin;
          for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(value[i]);
        }
        if (j == known.order) {
          T* __restrict to = step.error + begin;
          for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(share * value[i]);
        }
        const int64_t near = j - known.order + 1;
        if (near < 0 || near >= NEAR) continue;
        squares[near] += sum<R>(size, [&](int64_t i) {
          const R scaled = value[i] / unit[i];
          return scaled * scaled;
        });
      }
    }
    return choose(known, squares);
  }

 private:
  static constexpr int64_t MOST = 16;  // rows, of 12 at most
  int64_t rows_, n_, max_order_;
  double rtol_, atol_;
  Gauss gauss_;

  // What the error of each entry may be.
  void units(const T* z, const T* end, R* unit, int64_t size) const {
    const R rtol = static_cast<R>(rtol_), atol = static_cast<R>(atol_);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const R before = std::abs(static_cast<R>(z[i])), after = std::abs(static_cast<R>(end[i]));
      unit[i] = (before > after ? before : after) * rtol + atol;
    }
  }

  // Of this order, one less and one more, that with the smallest error.
  int64_t choose(const Coefficients<R>& known, const double* squares) const {
    R least = std::numeric_limits<R>::infinity();
    int64_t best = known.order - 1;
    for (int64_t k = std::max<int64_t>(known.order - 1, 1);
         k <= std::min(known.order + 1, rows_); ++k) {
      const R error = root<R>(squares[k - known.order + 1]) * known.g[k];
      if (error < least) {
        least = error;
        best = k;
      }
    }
    return std::min({best, known.highest, max_order_});
  }
};

}  // namespace implicitcore
