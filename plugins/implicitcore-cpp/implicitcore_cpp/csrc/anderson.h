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
  Anderson(const at::Tensor& z, int64_t depth, int64_t period, double damping, double ridge,
           double plain_rate)
      : q_(z, depth, z.size(1)), p_(z, depth, z.size(1)), period_(period), damping_(damping),
        ridge_(ridge), plain_rate_(plain_rate), alive_(z.size(0) * depth, 1), plain_(z.size(0), 1),
        back_(z.size(0)), waits_(z.size(0), plain_rate > 0), size_(z.size(0)) {}

  void begin(const Iterates& now) override {
    if (q_.count == period_) q_.count = p_.count = 0;
    plain_step_ = now.fz;
    if (damping_ != 1) plain_step_ = at::empty_like(now.z);
    now_ = now;
    damped_ = damping_ == 1 ? nullptr : plain_step_.template mutable_data_ptr<T>();
    last_g_ = last_.g.defined() ? last_.g.template const_data_ptr<T>() : nullptr;
    last_p_ = last_.g.defined() ? last_.fz.template const_data_ptr<T>() : nullptr;
  }

  void step(const Row<T>& now, T* next) override {
    const int64_t at = now.sample * now.n;
    const T* plain = now.fz;
    if (damped_) {
      lerp(now.z, now.fz, static_cast<R>(damping_), damped_ + at, now.n);
      plain = damped_ + at;
    }
    if (!last_g_ || waits(now)) {
      size_[now.sample] = now.size;
      std::copy(plain, plain + now.n, next);
      return;
    }
    thread_local Weights weights;
    learn(now, last_g_ + at, weights);
    back_[now.sample] = now.grown && !plain_[now.sample];
    plain_[now.sample] = now.grown;
    const T* last_p = last_p_ + at;
    move(now, weights, back_[now.sample] ? last_p : plain, {plain, last_p}, next);
  }

  // The residual and the plain step to go on from; a sample that goes back keeps its own.
  void end() override {
    at::Tensor g = now_.g, p = plain_step_;
    if (last_g_) {
      ++q_.count;
      ++p_.count;
      if (std::find(back_.begin(), back_.end(), 1) != back_.end()) {
        g = merged(g, last_.g);
        p = merged(p, last_.fz);
        std::fill(back_.begin(), back_.end(), 0);
      }
    }
    last_.g = g;
    last_.fz = p;
    now_ = {};
    plain_step_.reset();
  }

 private:
  Rows<T> q_, p_;
  int64_t period_;
  double damping_, ridge_, plain_rate_;
  Iterates last_, now_;     // of `last_` the residual, and as fz the plain step
  at::Tensor plain_step_;
  const T *last_g_ = nullptr, *last_p_ = nullptr;
  T* damped_ = nullptr;
  std::vector<uint8_t> alive_, plain_, back_;  // per row of a sample, and per sample
  std::vector<uint8_t> waits_;  // whose plain steps have been fast enough from the start on
  std::vector<R> size_;         // their last residuals

  // The rows in use of one sample, and their coefficients in the new direction and in the next
  // iterate. One for a thread, which keeps its memory.
  struct Weights {
    std::vector<int64_t> places;
    std::vector<const T*> q, p;
    std::vector<R> old, next, direction;
    R scale, newest;

    void clear() {
      places.clear();
      q.clear();
      p.clear();
    }
  };

  // Whether a sample takes the plain step, and leaves its row of this iteration out.
  bool waits(const Row<T>& now) {
    uint8_t& waits = waits_[now.sample];
    waits = waits && now.size <= size_[now.sample] * static_cast<R>(plain_rate_);
    if (waits) alive_[now.sample * q_.depth + q_.slot()] = 0;
    return waits;
  }

  at::Tensor merged(const at::Tensor& now, const at::Tensor& last) const {
    at::Tensor out = at::empty_like(now);
    const int64_t n = now.size(1);
    T* to = out.template mutable_data_ptr<T>();
    for (int64_t b = 0; b < now.size(0); ++b) {
      const T* from = (back_[b] ? last : now).template const_data_ptr<T>() + b * n;
      std::copy(from, from + n, to + b * n);
    }
    return out;
  }

  // The rows of a sample that are in use.
  void find(const Row<T>& now, Weights& weights) {
    const uint8_t* alive = alive_.data() + now.sample * q_.depth;
    weights.clear();
    for (int64_t j = 0; j < q_.used(); ++j) {
      if (!alive[j]) continue;
      weights.places.push_back(j);
      weights.q.push_back(q_.row(now.sample, j));
      weights.p.push_back(p_.row(now.sample, j));
    }
    weights.old.resize(weights.q.size());
    weights.next.resize(weights.q.size());
    weights.direction.resize(now.n);
  }

  // Write the newest difference of residuals, orthonormal to the others, over the oldest.
  void learn(const Row<T>& now, const T* __restrict last_g, Weights& weights) {
    const int64_t n = now.n, slot = q_.slot();
    uint8_t* alive = alive_.data() + now.sample * q_.depth;
    if (now.grown) std::fill(alive, alive + q_.depth, 0);
    find(now, weights);
    const T* __restrict g = now.g;
    R* __restrict q = weights.direction.data();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) q[i] = static_cast<R>(g[i]) - static_cast<R>(last_g[i]);
    project(now, weights);
    const R length = reduce(now, weights);
    const R least = std::sqrt(std::numeric_limits<R>::min());
    const R scale = 1 / std::hypot(length, least + static_cast<R>(ridge_) * now.size);
    T* __restrict row = q_.row(now.sample, slot);
    const double newest = sum<R>(n, [=](int64_t i) {
      row[i] = static_cast<T>(q[i] * scale);
      return static_cast<R>(row[i]) * static_cast<R>(g[i]);
    });
    for (size_t k = 0; k < weights.places.size(); ++k) {
      if (weights.places[k] == slot) weights.next[k] = 0;
    }
    alive[slot] = !now.grown;
    weights.scale = scale;
    weights.newest = now.grown ? R(0) : static_cast<R>(newest);
  }

  void project(const Row<T>& now, Weights& weights) const {
    const int64_t count = weights.q.size();
    for (int64_t k = 0; k < count; k += AT_ONCE) {
      by_count(std::min(count - k, AT_ONCE), [&](auto some) {
        products<some>(weights.q.data() + k, weights.direction.data(), now.g, now.n,
                       weights.old.data() + k, weights.next.data() + k);
      });
    }
  }

  // Take from the direction its parts along the rows; what is left of it, as a norm.
  R reduce(const Row<T>& now, Weights& weights) const {
    double square = 0;
    for (int64_t begin = 0; begin < now.n; begin += TILE) {
      const int64_t size = std::min(now.n - begin, TILE);
      R* part = weights.direction.data() + begin;
      const Share<R> shares[] = {{part, weights.old.data()}};
      take_rows(weights.q, shares, begin, size);
      square += sum_of_squares<R>(part, size);
    }
    return root<R>(square);
  }

  // The plain step of this iterate, and of the last.
  struct Plain {
    const T *now, *last;
  };

  // The next iterate, from the plain step `base`, and the newest p.
  void move(const Row<T>& now, const Weights& weights, const T* base, Plain plain, T* next) {
    alignas(64) R row[TILE], step[TILE];
    const R scale = weights.scale, share = weights.newest;
    for (int64_t begin = 0; begin < now.n; begin += TILE) {
      const int64_t size = std::min(now.n - begin, TILE);
      const T *here = plain.now + begin, *before = plain.last + begin, *from = base + begin;
      T *__restrict to = p_.row(now.sample, p_.slot()) + begin, *__restrict out = next + begin;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        row[i] = static_cast<R>(here[i]) - static_cast<R>(before[i]);
        step[i] = static_cast<R>(from[i]);
      }
      const Share<R> shares[] = {{row, weights.old.data()}, {step, weights.next.data()}};
      take_rows(weights.p, shares, begin, size);
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        to[i] = static_cast<T>(row[i] * scale);
        out[i] = static_cast<T>(step[i] - share * static_cast<R>(to[i]));
      }
    }
  }
};

}  // namespace implicitcore
