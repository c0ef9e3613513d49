// Solves and Krylov spaces as operations of a graph, which are given and give nothing but tensors.
// What they remember is behind one, and goes with it. To a graph they are pure functions: each is
// given what the one before it gave, which keeps their order.
#pragma once

#include <memory>
#include <tuple>
#include <utility>

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>

#include "krylov_space.h"
#include "root_iteration.h"

namespace implicitcore {

// Something behind a tensor of one number: its own address, by which a copy is told apart.
template <class Work>
struct Held {
  int64_t place;
  Work work;

  static at::Tensor tensor(Work work) {
    Held* held = new Held{0, std::move(work)};
    held->place = reinterpret_cast<int64_t>(held);
    return at::from_blob(&held->place, {1}, [held](void*) { delete held; }, at::kLong);
  }

  static Work& of(const at::Tensor& tensor) {
    const int64_t* place = tensor.const_data_ptr<int64_t>();
    TORCH_CHECK(*place == reinterpret_cast<int64_t>(place), "a copy of a solve has nothing of it");
    return reinterpret_cast<Held*>(*place)->work;
  }
};

// A number, without the dispatcher, which would take most of the time.
template <class V>
inline at::Tensor number(V value) {
  at::Tensor out = at::detail::empty_cpu({}, c10::CppTypeToScalarType<V>::value);
  *out.mutable_data_ptr<V>() = value;
  return out;
}

inline at::Tensor flag(bool value) { return number(value); }
inline at::Tensor whole(int64_t value) { return number(value); }

// A solve of so many evaluations at most.
struct GraphSolve {
  std::unique_ptr<RootIteration> iteration;
  int64_t most, count = 0;
  at::Tensor unit;  // [batch, 1], of the iteration; undefined where each is 1
};

using GraphSpace = std::unique_ptr<KrylovSpace>;

// The next iterate, and whether there is one. What a graph gives is its own: it is kept no longer
// than to the next iteration, before which nothing is written to it, but for what begins a solve.
inline std::tuple<at::Tensor, at::Tensor> root_advance(const at::Tensor& state, const at::Tensor& z,
                                                       const at::Tensor& fz,
                                                       const std::optional<at::Tensor>& g,
                                                       const at::Tensor&) {
  GraphSolve& solve = Held<GraphSolve>::of(state);
  const bool begins = !solve.count, last = ++solve.count >= solve.most;
  if (begins) solve.unit = solve.iteration->take_units(z, fz);
  if (const at::Tensor& unit = solve.unit; unit.defined()) {
    std::optional<at::Tensor> value;
    if (g) value = g->div(unit);
    const std::optional<at::Tensor> next =
        solve.iteration->advance(z.div(unit), fz.div(unit), value, last);
    return {next ? next->mul(unit) : at::empty_like(z), flag(next.has_value())};
  }
  std::optional<at::Tensor> next = begins ? solve.iteration->advance(z.clone(), fz.clone(), g, last)
                                          : solve.iteration->advance(z, fz, g, last);
  const bool going = next.has_value();
  if (!going) next = at::empty_like(z);
  return {next->is_same(fz) ? fz.clone() : *next, flag(going)};
}

// The best iterates, their residuals, statuses, steps, and the evaluations.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> root_result(
    const at::Tensor& state, const at::Tensor&, const at::Tensor&) {
  const GraphSolve& solve = Held<GraphSolve>::of(state);
  Result found = solve.iteration->result();
  if (const at::Tensor& unit = solve.unit; unit.defined()) {
    found.z = found.z.mul(unit);
    found.residual = found.residual.mul(unit.squeeze(1));
  }
  return {found.z, found.residual, found.status, found.steps, whole(solve.count)};
}

// The space, its first vector, and whether it needs a product.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> graph_space(const at::Tensor& g,
                                                                  const at::Tensor& limit,
                                                                  const at::Tensor& most) {
  GraphSpace space = krylov_space(g, limit, *most.const_data_ptr<int64_t>());
  const std::optional<at::Tensor> first = space->extend(std::nullopt);
  return {Held<GraphSpace>::tensor(std::move(space)), first ? *first : at::zeros_like(g),
          flag(first.has_value())};
}

// The next vector, and whether it needs a product.
inline std::tuple<at::Tensor, at::Tensor> graph_extend(const at::Tensor& state,
                                                       const at::Tensor& product,
                                                       const at::Tensor&) {
  const std::optional<at::Tensor> next = Held<GraphSpace>::of(state)->extend(product);
  return {next ? *next : at::empty_like(product), flag(next.has_value())};
}

// The minimisers, the products that each sample used, and all.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> graph_minimise(const at::Tensor& state,
                                                                     const at::Tensor&,
                                                                     const at::Tensor&) {
  const GraphSpace& space = Held<GraphSpace>::of(state);
  return {space->minimise(), space->steps(), whole(space->size())};
}

}  // namespace implicitcore
