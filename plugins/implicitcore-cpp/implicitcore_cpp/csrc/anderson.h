// Anderson acceleration by truncated Gram-Schmidt.
#pragma once

#include "updates.h"

namespace implicitcore {

// See Anderson of implicitcore: rows (q_i, p_i), a difference of residuals, orthonormal, and of the
// plain steps beside it.
template <class T>
class Anderson : public Update<T> {
  using R = Real<T>;
  static constexpr int64_t TILE = 256;  // entries for which all rows are read, while they are near

 public:
  Anderson(const at::Tensor& z, int64_t depth, int64_t period, double damping, double ridge)
      : q_(z, depth, z.size(1)), p_(z, depth, z.size(1)), period_(period), damping_(damping),
        ridge_(ridge), last_g_(at::empty_like(z)), last_p_(at::empty_like(z)),
        alive_(z.size(0) * depth, 1), plain_(z.size(0), 1) {}

  void begin() override {
    if (q_.count == period_) q_.count = p_.count = 0;
    first_ = fresh_start_;
    fresh_start_ = false;
  }

  void step(const Row<T>& now, T* next) override {
    const int64_t at = now.sample * now.n;
    T *last_g = last_g_.template mutable_data_ptr<T>() + at,
      *last_p = last_p_.template mutable_data_ptr<T>() + at;
    const T* plain = plain_step(now);
    if (first_) {
      std::copy(plain, plain + now.n, next);
    } else {
      const Weights weights = learn(now, last_g);
      const bool back = now.grown && !plain_[now.sample];
      plain_[now.sample] = now.grown;
      move(now.sample, now.n, weights, back, plain, last_p, next);
      if (back) return;
    }
    std::copy(now.g, now.g + now.n, last_g);
    std::copy(plain, plain + now.n, last_p);
  }

  void end() override {
    if (first_) return;
    ++q_.count;
    ++p_.count;
  }

 private:
  Rows<T> q_, p_;
  int64_t period_;
  double damping_, ridge_;
  at::Tensor last_g_, last_p_;
  std::vector<uint8_t> alive_, plain_;  // per row of a sample, and per sample
  bool first_ = true, fresh_start_ = true;

  // The coefficients of the rows: in the new direction, and in the next iterate.
  struct Weights {
    std::vector<R>&old, &next;
    R scale, newest;
  };

  const T* plain_step(const Row<T>& now) const {
    if (damping_ == 1) return now.fz;
    thread_local std::vector<T> plain;
    plain.resize(now.n);
    lerp(now.z, now.fz, static_cast<R>(damping_), plain.data(), now.n);
    return plain.data();
  }

  // Write the newest difference of residuals, orthonormal to the others, over the oldest.
  Weights learn(const Row<T>& now, const T* last_g) {
    thread_local std::vector<R> old, next;
    const int64_t n = now.n, used = q_.used(), slot = q_.slot();
    uint8_t* alive = alive_.data() + now.sample * q_.depth;
    if (now.grown) std::fill(alive, alive + q_.depth, 0);
    old.assign(used, 0);
    next.assign(used, 0);
    const T* g = now.g;
    R* q = scratch<R>(n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) q[i] = static_cast<R>(g[i]) - static_cast<R>(last_g[i]);
    for (int64_t j = 0; j < used; ++j) {
      if (alive[j]) project(now, q, j, old[j], next[j]);
    }
    const R length = reduce(now, q, old);
    const R least = std::sqrt(std::numeric_limits<R>::min());
    const R scale = 1 / std::hypot(length, least + static_cast<R>(ridge_) * now.size);
    T* row = q_.row(now.sample, slot);
    const double newest = sum<R>(n, [=](int64_t i) {
      row[i] = static_cast<T>(q[i] * scale);
      return static_cast<R>(row[i]) * static_cast<R>(g[i]);
    });
    if (slot < used) next[slot] = 0;
    alive[slot] = !now.grown;
    return {old, next, scale, now.grown ? R(0) : static_cast<R>(newest)};
  }

  // The products of a row with the difference q and with the residual.
  void project(const Row<T>& now, const R* q, int64_t j, R& with_q, R& with_g) {
    const T *row = q_.row(now.sample, j), *g = now.g;
    double total_q = 0, total_g = 0;
    for (int64_t begin = 0; begin < now.n; begin += BLOCK) {
      const int64_t end = std::min(now.n, begin + BLOCK);
      R part_q = 0, part_g = 0;
#pragma omp simd reduction(+ : part_q, part_g)
      for (int64_t i = begin; i < end; ++i) {
        const R value = static_cast<R>(row[i]);
        part_q += value * q[i];
        part_g += value * static_cast<R>(g[i]);
      }
      total_q += part_q;
      total_g += part_g;
    }
    with_q = total_q;
    with_g = total_g;
  }

  // Take from q its parts along the rows; what is left of it, as a norm.
  R reduce(const Row<T>& now, R* q, const std::vector<R>& weights) {
    double square = 0;
    for (int64_t begin = 0; begin < now.n; begin += TILE) {
      const int64_t size = std::min(now.n - begin, TILE);
      R* part = q + begin;
      for (size_t j = 0; j < weights.size(); ++j) {
        if (weights[j] == 0) continue;
        const T* row = q_.row(now.sample, j) + begin;
        const R weight = weights[j];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) part[i] -= weight * static_cast<R>(row[i]);
      }
      square += sum<R>(size, [=](int64_t i) { return part[i] * part[i]; });
    }
    return root<R>(square);
  }

  // The next iterate, from the last plain step or the one before, and the newest p.
  void move(int64_t sample, int64_t n, const Weights& weights, bool back, const T* plain,
            const T* last_p, T* next) {
    R row[TILE], step[TILE];
    T* newest = p_.row(sample, p_.slot());
    const R scale = weights.scale, share = weights.newest;
    for (int64_t begin = 0; begin < n; begin += TILE) {
      const int64_t size = std::min(n - begin, TILE);
      const T *here = plain + begin, *before = last_p + begin, *from = back ? before : here;
      T *to = newest + begin, *out = next + begin;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        row[i] = static_cast<R>(here[i]) - static_cast<R>(before[i]);
        step[i] = static_cast<R>(from[i]);
      }
      combine(sample, begin, size, weights, row, step);
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        to[i] = static_cast<T>(row[i] * scale);
        out[i] = static_cast<T>(step[i] - share * static_cast<R>(to[i]));
      }
    }
  }

  void combine(int64_t sample, int64_t begin, int64_t size, const Weights& weights, R* row,
               R* step) {
    for (size_t j = 0; j < weights.old.size(); ++j) {
      const R old = weights.old[j], next = weights.next[j];
      if (old == 0 && next == 0) continue;
      const T* p = p_.row(sample, j) + begin;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const R value = static_cast<R>(p[i]);
        row[i] -= old * value;
        step[i] -= next * value;
      }
    }
  }
};

}  // namespace implicitcore
