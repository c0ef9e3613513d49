// When each sample stops: the same decisions, in the same order, as StopTest of implicitcore.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "sums.h"

namespace implicitcore {

enum class Scale { update = 0, root = 1, fixed = 2 };
enum Status : int8_t { max_steps = 1, diverged = 2, non_finite = 3, stalled = 4 };

// What StopRule of implicitcore says.
struct Rule {
  double tol, rounding, divergence, trust, growth;
  int64_t min_steps;
  Scale scale;
};

// max and min of torch, which give a NaN where there is one.
template <class R>
inline R most(R a, R b) {
  return std::isnan(a) ? a : (std::isnan(b) || b > a ? b : a);
}
template <class R>
inline R least(R a, R b) {
  return std::isnan(a) ? a : (std::isnan(b) || b < a ? b : a);
}

template <class R>
class StopTest {
  static constexpr R INF = std::numeric_limits<R>::infinity();

 public:
  // Of this iterate, [batch]; written before `check`.
  std::vector<R> size, update;
  // The best iterate, and what each sample did.
  std::vector<R> best_norm, best_limit, start_norm, ceiling;
  std::vector<int64_t> steps;
  std::vector<int8_t> failure;
  std::vector<uint8_t> active, improved, grown;
  bool all_improved = true, any_grown = false, any_failed = false, stopped_apart = false;
  int64_t count = 0, remaining;

  // `begun` where another solver began the solve, as Origin of implicitcore; else empty.
  StopTest(const Rule& rule, std::vector<R> floor, std::vector<R> fixed, bool begun,
           std::vector<R> start_norm, std::vector<R> ceiling)
      : size(floor.size(), INF), update(floor.size()), best_norm(floor.size(), INF),
        best_limit(floor), start_norm(std::move(start_norm)), ceiling(std::move(ceiling)),
        steps(floor.size()), failure(floor.size()), active(floor.size(), 1),
        improved(floor.size(), 1), grown(floor.size()), remaining(floor.size()), rule_(rule),
        floor_(std::move(floor)), fixed_(std::move(fixed)), limit_(size.size()),
        reach_(size.size()), last_(size), one_(size.size(), 1), doubted_(size.size()),
        begun_(begun) {}

  int64_t batch() const { return size.size(); }

  // What the tolerance is relative to, where that is known.
  R fixed(int64_t b) const { return fixed_[b]; }

  R tol() const { return rule_.tol; }

  // Below it the square of a residual underflows.
  static R small() { return 100 * std::sqrt(std::numeric_limits<R>::min()); }

  // What is absolute, in units of each sample: before the first iterate.
  void take_units(const std::vector<R>& units) {
    for (int64_t b = 0; b < batch(); ++b) {
      floor_[b] /= units[b];
      best_limit[b] /= units[b];
      one_[b] /= units[b];
      if (rule_.scale == Scale::fixed) fixed_[b] /= units[b];
    }
  }

  // Take in `size` and `update`; whether every sample has stopped.
  bool check() {
    if (++count == 1) begin();
    for (int64_t b = 0; b < batch(); ++b) limit_[b] = active[b] ? limit(b) : -INF;
    if (count == 1) reach();
    any_grown = false;
    if (rule_.min_steps == 1 && !any_failed && all_between()) {
      for (int64_t b = 0; b < batch(); ++b) {
        best_norm[b] = size[b];
        if (active[b]) best_limit[b] = limit_[b];
      }
      all_improved = true;
    } else {
      look();
    }
    last_ = size;
    return remaining == 0;
  }

  // Samples whose residual has stopped falling.
  void stall(const std::vector<int64_t>& which) {
    for (const int64_t b : which) {
      fail(b, stalled);
      stop(b);
    }
    if (!which.empty()) recount();
  }

 private:
  Rule rule_;
  std::vector<R> floor_, fixed_, limit_, reach_, last_, one_;
  std::vector<uint8_t> doubted_;
  bool begun_;

  R scale(R update, R start, int64_t b) const {
    if (rule_.scale == Scale::fixed) return fixed_[b];
    return rule_.scale == Scale::update ? update
                                         : most<R>(least(start, update), one_[b]);
  }

  R limit(int64_t b) const {
    return floor_[b] + static_cast<R>(rule_.tol) * scale(update[b], start_norm[b], b);
  }

  void begin() {
    if (begun_) return;
    for (int64_t b = 0; b < batch(); ++b) {
      const bool infinite = std::isinf(size[b]);
      start_norm.push_back(infinite ? std::numeric_limits<R>::quiet_NaN() : size[b]);
      ceiling.push_back(most(start_norm[b], update[b]) * static_cast<R>(rule_.divergence));
    }
  }

  // How far a limit counts that grows with |f(z)|, from where the solve began.
  void reach() {
    for (int64_t b = 0; b < batch(); ++b) {
      R first = limit_[b];
      if (begun_) {
        const R at_start = scale(ceiling[b] / static_cast<R>(rule_.divergence), start_norm[b], b);
        first = least(first, floor_[b] + at_start * static_cast<R>(rule_.tol));
      }
      reach_[b] = most(first, start_norm[b] * static_cast<R>(rule_.trust));
    }
  }

  // The usual iteration: each residual is the least so far, and above its limit.
  bool all_between() const {
    for (int64_t b = 0; b < batch(); ++b) {
      const R low = std::max(size[b], limit_[b]);
      if (!(std::min(low, best_norm[b]) == size[b])) return false;
    }
    return true;
  }

  void look() {
    std::vector<R> in_force(limit_);
    std::vector<uint8_t> met(batch());
    for (int64_t b = 0; b < batch(); ++b) {
      if (!active[b]) {
        in_force[b] = best_limit[b];
        continue;
      }
      bool stops = false;
      met[b] = count >= rule_.min_steps && size[b] <= limit_[b] && counts(b, stops);
      if (!(size[b] <= ceiling[b])) {
        stops = true;
        fail(b, std::isfinite(size[b]) ? diverged : non_finite);
      }
      if (met[b] || stops) stop(b);
    }
    recount();
    compare(in_force, met);
  }

  // Whether a limit that was met is not owed to a growth of |f(z)|; else the sample may run away.
  bool counts(int64_t b, bool& stops) {
    const R hidden = update[b] * static_cast<R>(rule_.rounding);
    if (!doubted_[b]) reach_[b] = most(reach_[b], size[b] * static_cast<R>(rule_.trust));
    doubted_[b] = 1;
    const R rounded = static_cast<R>(128 * rule_.rounding / rule_.divergence);
    const R bound = most(reach_[b], ceiling[b] * rounded);
    if (most(size[b], hidden) <= bound) return true;
    if (hidden > bound || update[b] > ceiling[b]) {
      stops = true;
      fail(b, diverged);
    }
    return false;
  }

  void fail(int64_t b, Status status) {
    failure[b] = status;
    any_failed = true;
  }

  void stop(int64_t b) {
    active[b] = 0;
    steps[b] = count;
  }

  void recount() {
    int64_t left = 0;
    for (const uint8_t each : active) left += each;
    stopped_apart = stopped_apart || (left > 0 && left < remaining);
    remaining = left;
  }

  void compare(const std::vector<R>& in_force, const std::vector<uint8_t>& met) {
    all_improved = !any_failed;
    for (int64_t b = 0; b < batch(); ++b) all_improved = all_improved && size[b] <= best_norm[b];
    for (int64_t b = 0; b < batch(); ++b) {
      grown[b] = !all_improved && size[b] > static_cast<R>(rule_.growth) * last_[b];
      any_grown = any_grown || grown[b];
      improved[b] = all_improved || met[b] || size[b] < best_norm[b];
      if (!improved[b]) continue;
      best_norm[b] = size[b];
      best_limit[b] = in_force[b];
    }
  }
};

}  // namespace implicitcore
