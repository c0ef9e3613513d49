// What follows the stages of an adaptive step: error norm, acceptance, the next size and the clocks.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels.h"

namespace implicitcore {

// The least error that a later step remembers, as in the reference.
constexpr double LEAST = 1e-4;

// What StepRule of implicitcore has.
struct StepRule {
  double rtol, atol;
  std::vector<double> exponents;
  double safety, shrink, grow, min_step, max_step, move_bound;
};

// The states of a step.
struct States {
  at::Tensor z, z_next, error;
};

// The clocks of a step, [batch]: t, dt, end, and where there are such the stop and the next output.
struct Clocks {
  at::Tensor t, dt, end;
  std::optional<at::Tensor> target, due;
  bool forward;
};

// What is said of each sample, [batch] bool.
struct Masks {
  at::Tensor arrives, active, done;
};

using Order = std::variant<double, at::Tensor>;

// What StepOutcome of implicitcore has.
struct StepOutcome {
  at::Tensor accept, error, size, memory, t, follows;
  bool alike, arrived, refused;
  std::optional<at::Tensor> passed;
  bool all_pass;
  std::optional<std::vector<at::Tensor>> ahead;
};

// The error in units of what is allowed; a NaN where the step ends at none that is finite.
template <class T>
inline Real<T> scaled_error(const StepRule& rule, const T* z, const T* z_next, const T* error,
                            int64_t n) {
  using R = Real<T>;
  const R found = scaled_rms(error, z, z_next, n, rule.rtol, rule.atol);
  if (!std::isfinite(rule.move_bound)) return found;
  const R move = std::max(distance(z_next, z, n), std::numeric_limits<R>::min());
  const R of_move = norm<R>(error, n) / (static_cast<R>(rule.move_bound) * move);
  return std::isnan(found) || of_move <= found ? found : of_move;
}

// The size after one of `size`; `past` are the errors of the steps before.
template <class C>
inline C next_size(const StepRule& rule, C found, C size, const C* past, int64_t stride,
                   bool accept, C order) {
  C factor;
  if (accept) {
    factor = std::pow(found, static_cast<C>(-rule.exponents[0]) / order);
    for (size_t i = 1; i < rule.exponents.size(); ++i) {
      const C base = std::max(past[(i - 1) * stride], static_cast<C>(LEAST));
      factor *= std::pow(base, static_cast<C>(-rule.exponents[i]) / order);
    }
  } else {
    factor = std::pow(found, -1 / order);
  }
  factor *= static_cast<C>(rule.safety);
  const C shrink = static_cast<C>(rule.shrink);
  factor = std::isnan(factor) ? shrink : std::clamp(factor, shrink, static_cast<C>(rule.grow));
  C following = size * factor;
  if (accept && rule.min_step > 0) following = std::max(following, static_cast<C>(rule.min_step));
  return std::min(following, static_cast<C>(rule.max_step));
}

inline at::Tensor flags(int64_t batch) { return at::empty({batch}, at::TensorOptions(at::kBool)); }

template <class T, class C>
inline StepOutcome controlled(const StepRule& rule, const States& states, const Order& order,
                              const at::Tensor& memory, const Clocks& clocks, const Masks& masks) {
  const int64_t batch = states.z.size(0), n = states.z.size(1);
  const bool two = rule.exponents.size() > 2;
  const int64_t stride = memory.dim() > 1 ? batch : 0;  // both the same at first
  const T *z = states.z.const_data_ptr<T>(), *z_next = states.z_next.const_data_ptr<T>(),
          *errors = states.error.const_data_ptr<T>();
  const C *t = clocks.t.const_data_ptr<C>(), *dt = clocks.dt.const_data_ptr<C>(),
          *end = clocks.end.const_data_ptr<C>(), *past = memory.const_data_ptr<C>(),
          *target = clocks.target ? clocks.target->const_data_ptr<C>() : nullptr,
          *due = clocks.due ? clocks.due->const_data_ptr<C>() : nullptr;
  const bool *arrives = masks.arrives.const_data_ptr<bool>(),
             *active = masks.active.const_data_ptr<bool>(),
             *done = masks.done.const_data_ptr<bool>();
  const double* one = std::get_if<double>(&order);
  const int64_t* orders = one ? nullptr : std::get<at::Tensor>(order).const_data_ptr<int64_t>();
  const at::TensorOptions clock = clocks.t.options();
  StepOutcome out{flags(batch), at::empty({batch}, clock), at::empty({batch}, clock),
                  two ? at::empty({2, batch}, clock) : at::empty({batch}, clock),
                  at::empty({batch}, clock), flags(batch)};
  const at::Tensor passed = due ? flags(batch) : at::Tensor();
  std::vector<at::Tensor> ahead;
  if (target) ahead = {at::empty({batch}, clock), at::empty({batch}, clock), flags(batch)};
  bool *accept = out.accept.mutable_data_ptr<bool>(), *follows = out.follows.mutable_data_ptr<bool>(),
       *passes = due ? passed.mutable_data_ptr<bool>() : nullptr;
  C *error = out.error.mutable_data_ptr<C>(), *size = out.size.mutable_data_ptr<C>(),
    *kept = out.memory.mutable_data_ptr<C>(), *now = out.t.mutable_data_ptr<C>();
  each_sample(batch, n, [&](int64_t b) {
    error[b] = scaled_error(rule, z + b * n, z_next + b * n, errors + b * n, n);
  });
  int64_t following = 0, arrived = 0, refused = 0, passing = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const bool takes = active[b] && error[b] <= 1;
    const C root = one ? static_cast<C>(*one) : static_cast<C>(orders[b]);
    accept[b] = takes;
    size[b] = next_size(rule, error[b], std::abs(dt[b]), past + b, stride, takes, root);
    kept[b] = takes ? error[b] : past[b];
    if (two) kept[batch + b] = takes ? past[b] : past[stride + b];
    now[b] = takes ? end[b] : t[b];
    follows[b] = takes || done[b];
    following += follows[b];
    arrived += takes && arrives[b];
    refused += active[b] && !takes;
    if (due) {
      passes[b] = takes && (clocks.forward ? end[b] > due[b] : end[b] < due[b]);
      passing += passes[b];
    }
  }
  out.alike = following == batch;
  out.arrived = arrived > 0;
  out.refused = refused > 0;
  if (passing) out.passed = passed;
  out.all_pass = passing == batch;
  if (target && !arrived) {
    C *width = ahead[0].mutable_data_ptr<C>(), *ends = ahead[1].mutable_data_ptr<C>();
    bool* there = ahead[2].mutable_data_ptr<bool>();
    for (int64_t b = 0; b < batch; ++b) {
      const C remaining = target[b] - now[b];
      width[b] = std::min(std::max(remaining, -size[b]), size[b]);
      there[b] = width[b] == remaining;
      ends[b] = there[b] ? target[b] : now[b] + width[b];
    }
    out.ahead = std::move(ahead);
  }
  return out;
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return tensor->contiguous();
}

inline StepOutcome step_control(const StepRule& rule, const States& states, Order order,
                                const at::Tensor& memory, const Clocks& clocks,
                                const Masks& masks) {
  const States dense{states.z.contiguous(), states.z_next.contiguous(), states.error.contiguous()};
  const Clocks clock{clocks.t.contiguous(),       clocks.dt.contiguous(),
                     clocks.end.contiguous(),     contiguous(clocks.target),
                     contiguous(clocks.due),      clocks.forward};
  const Masks flags{masks.arrives.contiguous(), masks.active.contiguous(),
                    masks.done.contiguous()};
  if (at::Tensor* each = std::get_if<at::Tensor>(&order)) *each = each->contiguous();
  const at::Tensor past = memory.contiguous();
  StepOutcome out;
  dispatch(states.z, [&](auto type) {
    using T = decltype(type);
    if (clocks.t.scalar_type() == at::kDouble) {
      out = controlled<T, double>(rule, dense, order, past, clock, flags);
    } else {
      out = controlled<T, float>(rule, dense, order, past, clock, flags);
    }
  });
  return out;
}

}  // namespace implicitcore
