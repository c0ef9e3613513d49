"""The linear solve of a backward pass in a graph, or by a loop of its own with products of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from implicitcore.backends.base import Backend, Residual
from implicitcore.backends.graph import KrylovGraph, RootGraph
from implicitcore.dynamics.base import Dynamics
from implicitcore.graph.fused import correction, solve_fused
from implicitcore.graph.history import axpy_history, inner_products
from implicitcore.graph.loop import solve_from
from implicitcore.graph.stop import Found, GraphStop, Samples
from implicitcore.graph.system import GraphSystem, exact_norm
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.judgement import solve_from as solve_by_loop
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem, Products
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm
from implicitcore.tensors.packing import Packing


@dataclass(frozen=True, eq=False)
class LinearGraphSystem(GraphSystem):
    """u = J^T u + v, see :class:`LinearSystem`.

    Attributes:
        product: u -> J^T u.
        v: ``[batch, n]``.
        v_norm: ``[batch]``, its size, which the tolerance is relative to.
    """

    product: Callable[[Tensor], Tensor]
    v: Tensor
    v_norm: Tensor

    @classmethod
    def of(cls, product: Callable[[Tensor], Tensor], v: Tensor) -> LinearGraphSystem:
        """The system of ``product`` u -> J^T u and v."""
        v_norm = exact_norm(v)
        return cls(
            lambda u: (product(u) + v, None), lambda update, start: v_norm, 0.0, product, v, v_norm
        )

    def initial(self) -> Evaluation:
        """u = 0, where the residual is v."""
        residual = Residual(self.v.clone(), self.v_norm.clone(), self.v_norm.clone())
        return Evaluation(torch.zeros_like(self.v), self.v.clone(), residual)

    def evaluate(self, z: Tensor) -> Evaluation:
        """One product; ``|v|`` stands in for the size of f."""
        fz = self.function(z)[0]
        value = fz - z
        return Evaluation(z, fz.clone(), Residual(value, exact_norm(value), self.v_norm.clone()))


def linear_solve(
    solver: Any,
    product: Callable[[Tensor], Tensor],
    v: Tensor,
    fused: RootGraph | KrylovGraph | None = None,
) -> tuple[Tensor, Found]:
    """u with u = J^T u + v for ``product`` u -> J^T u, and what the solve came to.

    In units of the largest entry of v, per sample; its evaluations are the products. The
    iterations, or the Krylov spaces, are those of a backend where it has them, ``fused``.
    """
    size = v.abs().amax(1)
    unit = torch.where(size > 0, size.log2().floor().exp2(), 1)
    scaled = v / column(unit).to(v.dtype)
    system = LinearGraphSystem.of(product, scaled)
    run = _gmres if isinstance(solver, GMRES) else _iterated
    solution = run(solver, system, system.initial(), fused)
    u = solution.z * column(unit).to(v.dtype)
    tiny = torch.finfo(system.v_norm.dtype).tiny
    return u, solution._replace(residual=solution.residual / system.v_norm.clamp(min=tiny))


@dataclass(frozen=True, eq=False)
class LoopedSolve:
    """The same by the solver's own loop, whose history is written in place.

    Attributes:
        solver: the solver.
        dynamics: what was solved.
        backend: the kernels of the loop.
    """

    solver: Any
    dynamics: Dynamics
    backend: Backend

    @torch.no_grad()
    def __call__(self, product: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Found]:
        """See :func:`linear_solve`."""
        system = System.of(self.dynamics, (), Packing.of(v), backend=self.backend)
        linear = LinearSystem.transposed(system, _Traced(system, v, product), v)
        solution = solve_by_loop(self.solver, linear, linear.initial())
        tiny = torch.finfo(linear.v_norm.dtype).tiny
        residual = solution.residual / linear.v_norm.clamp(min=tiny)
        count = torch.tensor(linear.evaluations)
        ended = residual, solution.status, solution.steps, count
        return linear.solution(solution.z), Found(solution.z, *ended)


class _Traced(Products):
    """Products of a graph, of the whole batch."""

    def __init__(self, system: System, point: Tensor, product: Callable[[Tensor], Tensor]) -> None:
        super().__init__(system, point, self)
        self.product = product

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v."""
        return self.product(v)


def _iterated(solver: Any, system: LinearGraphSystem, first: Evaluation, iterations: Any) -> Found:
    if iterations is None:
        found = solve_from(solver, system, first)
    else:
        found = solve_fused(iterations, system.function, first.z, first.fz, system.v_norm)
    return found._replace(evaluations=found.evaluations - 1)  # the first is no product


class Cycle(NamedTuple):
    """A Krylov space on its way; see :class:`Krylov`."""

    basis: Tensor  # [batch, m + 1, n]
    triangle: Tensor  # [batch, m, m], transposed
    w: Tensor  # [batch, m]
    active: Tensor  # [batch] bool
    steps: Tensor  # [batch] int64
    products: Tensor  # int64


def _gmres(solver: GMRES, system: LinearGraphSystem, first: Evaluation, spaces: Any) -> Found:
    """See :class:`GMRES` and :class:`LinearRootSolver`."""
    stop = GraphStop.at(system, solver, first)

    def going(samples: Samples, now: Evaluation, products: Tensor, steps: Tensor) -> Tensor:
        del now, steps
        return samples.active.any() & (products < solver.max_products)

    def cycle(
        samples: Samples, now: Evaluation, products: Tensor, steps: Tensor
    ) -> tuple[Samples, Evaluation, Tensor, Tensor]:
        limit = torch.where(samples.active, stop.limit(now), torch.inf)
        most = (solver.max_products - products).clamp(max=solver.restart)
        g = now.residual.value
        if spaces is None:
            s, count, used = _correction(solver.restart, system, g, limit, most)
        else:
            s, count, used = correction(spaces, system.product, g, limit, most)
        z = torch.where(column(samples.active), now.z + s, now.z)
        now = system.evaluate(z)
        return stop.judge(samples, now), now, products + used + 1, steps + count

    none = torch.zeros((), dtype=torch.int64, device=first.z.device)
    samples = stop.first(first)
    begin = samples, first, none, torch.zeros_like(samples.steps)
    samples, _, products, steps = while_loop(going, cycle, begin)
    return stop.ended(samples)._replace(steps=steps, evaluations=products)


def _correction(
    most_rows: int, system: LinearGraphSystem, g: Tensor, limit: Tensor, most: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`~implicitcore.graph.fused.correction`: the same in operations of torch."""
    batch, n = g.shape
    beta = norm(g)
    eps = torch.finfo(beta.dtype)
    place = torch.arange(most_rows + 1, device=g.device)

    def going(cycle: Cycle) -> Tensor:
        return cycle.active.any() & (cycle.products < most)

    def extend(cycle: Cycle) -> tuple[Cycle]:
        k, rows = cycle.products, cycle.basis
        u = rows.index_select(1, k.view(1)).squeeze(1)
        p = u - system.product(u)
        row = p.unsqueeze(1)
        h = inner_products(rows, row)
        row = axpy_history(row, h, rows, -1)
        again = inner_products(rows, row)
        a = axpy_history(row, again, rows, -1)
        h = (h + again)[:, 0].to(beta.dtype)
        below = torch.maximum(norm(a.squeeze(1)), eps.eps * norm(p)).clamp(min=eps.tiny)
        new = (a / below.view(-1, 1, 1)).to(rows.dtype)
        rows = torch.where((place == k + 1).view(1, -1, 1), new, rows)
        here = place[:-1] == k
        line = torch.where(here, column(below), h[:, 1:])
        triangle = torch.where(here.view(1, -1, 1), line.unsqueeze(1), cycle.triangle)
        found = torch.where(cycle.active, (h[:, 0] - (h[:, 1:] * cycle.w).sum(1)) / below, 0)
        w = torch.where(here, column(found), cycle.w)
        smallest = beta / (1 + w.square().sum(1)).sqrt()
        active = cycle.active & (smallest > limit)
        return (Cycle(rows, triangle, w, active, cycle.steps + cycle.active, k + 1),)

    start = (g / column(beta.clamp(min=eps.tiny)).to(g.dtype)).unsqueeze(1)
    begin = Cycle(
        torch.where((place == 0).view(1, -1, 1), start, g.new_zeros(batch, most_rows + 1, n)),
        torch.eye(most_rows, dtype=beta.dtype, device=g.device).repeat(batch, 1, 1),
        torch.zeros(batch, most_rows, dtype=beta.dtype, device=g.device),
        beta > limit,
        torch.zeros_like(beta, dtype=torch.int64),
        torch.zeros((), dtype=torch.int64, device=g.device),
    )
    (cycle,) = while_loop(going, extend, (begin,))
    t = cycle.w * column(beta / (1 + cycle.w.square().sum(1)))
    y = torch.linalg.solve_triangular(cycle.triangle.mT, t.unsqueeze(2), upper=True)
    s = axpy_history(None, y.mT.to(g.dtype), cycle.basis[:, :-1]).squeeze(1)
    return s, cycle.steps, cycle.products
