// An integration by Adams to a steady state: a step, its control and the stop test in one call.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "adams_method.h"
#include "root_iteration.h"
#include "step_control.h"

namespace implicitcore {

// What AdamsFlowRule of implicitcore has.
struct FlowRule {
  int64_t max_order, rows;
  StepRule step;
  double first_step, shortest;
  int64_t patience;  // 0: none
  double fall, rise;
};

template <class T>
class AdamsFlow : public Judged<T> {
  using typename Judged<T>::R;
  using Judged<T>::test_;
  using Judged<T>::last_;
  using Judged<T>::iterates_;
  static constexpr R INF = std::numeric_limits<R>::infinity();

 public:
  AdamsFlow(StopTest<R> test, const FlowRule& rule, bool fixed, int64_t n)
      : Judged<T>(std::move(test), fixed), rule_(rule), n_(n),
        method_(rule.max_order, rule.rows, n, rule.step.rtol, rule.step.atol), each_(batch()),
        least_(batch(), INF), before_(batch(), INF) {
    const R first = static_cast<R>(std::min(rule.first_step, rule.step.max_step));
    for (Sample& each : each_) {
      each.size = first;
      for (int64_t j = 0; j < rule.rows; ++j) each.gaps[j] = static_cast<R>(j + 1);
    }
    for (std::vector<T>& side : differences_) side.resize(batch() * rule.rows * n);
  }

  // z is a point that the samples try: who refuses it stays at its last one, and tries a shorter
  // step.
  std::optional<at::Tensor> advance(at::Tensor z, at::Tensor fz, std::optional<at::Tensor> g,
                                    bool last) override {
    this->check_shapes(z, fz, g);
    z = z.contiguous();
    fz = fz.contiguous();
    const at::Tensor value = g ? g->contiguous() : at::Tensor();
    const T *from = z.const_data_ptr<T>(), *to = fz.const_data_ptr<T>(),
            *given = g ? value.const_data_ptr<T>() : nullptr;
    const T* point = last_.defined() ? last_.template const_data_ptr<T>() : nullptr;
    each_sample(batch(), n_ * method_.rows(), [&](int64_t b) {
      const int64_t at = b * n_;
      T* room = scratch<T>(2 * n_);  // the velocity, and the error of the step
      if (!given) subtract(to + at, from + at, room, n_);
      const T* velocity = given ? given + at : room;
      if (!point || arrives(b, point + at, from + at, velocity, room + n_)) {
        this->measure(b, from + at, to + at, velocity, n_);
        if (!point) begin(b, velocity);
      }
    });
    last_ = point ? moved(z) : z;
    // Every sample that had not stopped was just lost; at the start they are judged all the same.
    if (point && !goes_on()) return std::nullopt;
    const bool done = test_.check();
    this->keep(last_);
    if (!done && rule_.patience) watch();
    if (last || !goes_on()) return std::nullopt;
    return next();
  }

 protected:
  int8_t outcome(int64_t b) const override { return each_[b].lost ? each_[b].lost : max_steps; }

 private:
  struct Sample {
    R gaps[12] = {}, after[12] = {}, memory[2] = {1, 1};
    R size = 0, dt = 0, t = 0;
    int64_t order = 0;
    int8_t lost = 0, side = 0;  // a status where no step is short enough; where its differences are
    bool stays = false;         // it refused the last step
    Coefficients<R> known;
  };

  FlowRule rule_;
  int64_t n_;
  AdamsMethod<T> method_;
  std::vector<Sample> each_;
  std::vector<R> least_, before_;  // residuals of the last steps, and of as many before
  std::vector<T> differences_[2];

  int64_t batch() const { return test_.batch(); }

  bool goes(int64_t b) const { return test_.active[b] && !each_[b].lost; }

  bool goes_on() const {
    for (int64_t b = 0; b < batch(); ++b) {
      if (goes(b)) return true;
    }
    return false;
  }

  T* differences(int64_t b, int8_t side) {
    return differences_[side].data() + b * rule_.rows * n_;
  }

  // The velocity is known, and nothing before. Where it is infinite no step is short enough.
  void begin(int64_t b, const T* velocity) {
    const auto finite = [](T each) { return std::isfinite(static_cast<R>(each)); };
    if (!std::isfinite(test_.size[b]) && !std::all_of(velocity, velocity + n_, finite)) {
      each_[b].lost = non_finite;
    }
    T* phi = differences(b, 0);
    std::copy(velocity, velocity + n_, phi);
    std::fill(phi + n_, phi + rule_.rows * n_, T(0));
  }

  // Whether the sample is at the end of the step that it tried; one that has stopped always is.
  bool arrives(int64_t b, const T* z, const T* end, const T* velocity, T* error) {
    Sample& now = each_[b];
    if (!goes(b)) return true;
    const Differences<T> phi{differences(b, now.side), n_};
    const int8_t other = 1 - now.side;
    const Corrected<T> step{z, end, velocity, differences(b, other), error};
    const int64_t following = method_.correct(now.known, now.dt, phi, step);
    const R found = scaled_error(rule_.step, z, end, error, n_), power = now.known.order + 1;
    const bool accept = found <= 1;
    now.size = next_size<R>(rule_.step, found, now.dt, now.memory, 1, accept, power);
    now.stays = !accept;
    if (!accept) {
      lose(now, found);
      return false;
    }
    now.memory[1] = now.memory[0];
    now.memory[0] = found;
    std::copy(now.after, now.after + rule_.rows, now.gaps);
    now.order = following;
    now.side = other;
    now.t += now.dt;
    return true;
  }

  // No smaller step may be left to try.
  void lose(Sample& now, R found) const {
    const R eps = std::numeric_limits<R>::epsilon();
    const R shortest = static_cast<R>(rule_.shortest) * eps;
    const R floor = std::max(shortest, static_cast<R>(rule_.step.min_step));
    if (now.size >= now.dt || now.size < std::max(eps * now.t, floor)) {
      now.lost = std::isfinite(found) ? stalled : non_finite;
    }
  }

  // Where the samples are that tried the points z.
  at::Tensor moved(const at::Tensor& z) {
    bool all = true;
    for (int64_t b = 0; b < batch(); ++b) all = all && !each_[b].stays;
    if (all) return z;
    at::Tensor out = iterates_.take(z);
    T* to = out.mutable_data_ptr<T>();
    const T *tried = z.const_data_ptr<T>(), *point = last_.template const_data_ptr<T>();
    for (int64_t b = 0; b < batch(); ++b) this->copy_row(each_[b].stays ? point : tried, to, b, n_);
    return out;
  }

  // Samples whose least residual of `patience` steps is about that of as many before.
  void watch() {
    for (int64_t b = 0; b < batch(); ++b) {
      least_[b] = least<R>(least_[b], test_.size[b]);
    }
    if (test_.count % rule_.patience) return;
    std::vector<int64_t> found;
    for (int64_t b = 0; b < batch(); ++b) {
      const R low = least_[b], last = before_[b];
      if (test_.active[b] && low > static_cast<R>(rule_.fall) * last &&
          low < static_cast<R>(rule_.rise) * last) {
        found.push_back(b);
      }
      before_[b] = low;
      least_[b] = INF;
    }
    test_.stall(found);
  }

  at::Tensor next() {
    at::Tensor out = iterates_.take(last_);
    T* to = out.mutable_data_ptr<T>();
    const T* point = last_.template const_data_ptr<T>();
    each_sample(batch(), n_ * method_.rows(), [&](int64_t b) {
      Sample& now = each_[b];
      if (!goes(b)) {
        now.stays = false;
        this->copy_row(point, to, b, n_);
        return;
      }
      now.dt = now.size;
      method_.coefficients(now.dt, now.gaps, now.after, now.order, now.known);
      const Differences<T> phi{differences(b, now.side), n_};
      method_.predict(now.known, now.dt, phi, point + b * n_, to + b * n_);
    });
    return out;
  }
};

}  // namespace implicitcore
