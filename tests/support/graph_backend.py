"""A backend whose iterations and Krylov spaces are operations of a graph, by torch's formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.backends.base import Residual
from implicitcore.backends.root_iteration import AndersonRule, PicardRule
from implicitcore.extend import GraphResult, real_dtype
from implicitcore.graph.loop import iteration_of
from implicitcore.graph.stop import GraphStop
from implicitcore.graph.system import GraphSystem, exact_norm
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.root_solvers.stop_state import origin_of
from implicitcore.system.evaluation import Evaluation

TORCH = ic.TorchBackend()
OPERATIONS = torch.library.Library("implicitcore_tests", "DEF")
GRAPHS: list[Any] = []
KEPT: list[Any] = []  # what solves remember: the state of each is its place


class Solve:
    """One solve: what wrong ones do otherwise is a method of its own.

    Arguments:
        graph: see :class:`InGraphs`.
        relative_to: see ``RootGraph.begin``.
    """

    def __init__(self, graph: RootOperations, relative_to: Tensor | None) -> None:
        self.graph, self.relative_to = graph, relative_to
        self.solver = solver_of(graph.update, graph.rule)
        self.iteration = iteration_of(self.solver)
        self.samples: Any = None

    def kept(self, tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.contiguous_format)

    def norm(self, value: Tensor) -> Tensor:
        return exact_norm(value)

    def evaluation(self, z: Tensor, fz: Tensor, g: Tensor | None) -> Evaluation:
        z, fz = self.kept(z), self.kept(fz)
        value = fz - z if g is None else self.kept(g)
        size = self.norm(fz)
        if isinstance(self.graph.rule.scale, Tensor) and self.relative_to is not None:
            size = self.relative_to
        return Evaluation(z, fz, Residual(value, self.norm(value), size))

    def judge(self, now: Evaluation) -> None:
        if self.samples is not None:
            self.samples = self.stop.judge(self.samples, now)
            return
        rule = self.graph.rule
        root = rule.scale == "root"
        system = GraphSystem(
            lambda z: (z, None),
            lambda update, start: torch.minimum(start, update).clamp(min=1) if root else update,
            rule.rounding,
        )
        origin = origin_of(now.residual.norm, now.residual.update_norm)
        self.stop = GraphStop(system, rule.tol, rule.floor, rule.min_steps, origin)
        self.samples, self.memory = self.stop.first(now), self.iteration.begin(now.z)

    def goes_on(self) -> bool:
        samples = self.samples
        return bool(samples.active.any()) and int(samples.evaluations) < self.graph.most

    def following(self, now: Evaluation) -> Tensor:
        z, self.memory = self.iteration.step(now, self.samples.grown, self.memory)
        return torch.where(self.samples.active[:, None], z, now.z)

    def advance(self, z: Tensor, fz: Tensor, g: Tensor | None) -> tuple[Tensor, bool]:
        now = self.evaluation(z, fz, g)
        self.judge(now)
        self.last = now
        return (self.following(now), True) if self.goes_on() else (torch.zeros_like(now.z), False)

    def result(self) -> tuple[Tensor, ...]:
        return tuple(each.clone() for each in self.stop.ended(self.samples))


def solver_of(update: Any, rule: Any) -> Any:
    """A solver of this rule; its stop test is not asked."""
    if isinstance(update, PicardRule):
        return ic.Picard(damping=update.damping)
    if isinstance(update, AndersonRule):
        ridge, rate = update.ridge**2, update.plain_rate
        return ic.Anderson(
            depth=update.depth, damping=update.damping, regularization=ridge, plain_rate=rate
        )
    return ic.Broyden(memory=update.memory)


class RootOperations:
    """See :class:`RootGraph`."""

    def __init__(self, backend: Any, update: Any, rule: Any, most: int) -> None:
        self.solve, self.update, self.rule, self.most = backend.solve, update, rule, most
        self.place = len(GRAPHS)
        GRAPHS.append(self)

    def begin(self, z, relative_to):
        return torch.ops.implicitcore_tests.root_begin(z, relative_to, self.place)

    def advance(self, state, z, fz, g, going):
        return torch.ops.implicitcore_tests.root_advance(state, z, fz, g, going)

    def result(self, state, z, going):
        return GraphResult(*torch.ops.implicitcore_tests.root_result(state, z, going))


class KrylovOperations:
    """See :class:`KrylovGraph`."""

    def __init__(self, backend: Any) -> None:
        self.space, self.place = backend.space, len(GRAPHS)
        GRAPHS.append(self)

    def begin(self, g, limit, most):
        return torch.ops.implicitcore_tests.krylov_begin(g, limit, most, self.place)

    def extend(self, state, product, going):
        return torch.ops.implicitcore_tests.krylov_extend(state, product, going)

    def minimise(self, state, v, going):
        return torch.ops.implicitcore_tests.krylov_minimise(state, v, going)


class InGraphs:
    """Mixed into a backend: both kinds of operations, by what these classes say."""

    solve = Solve
    space = Krylov

    def root_graph(self, update, rule, z, most):
        return RootOperations(self, update, rule, most)

    def krylov_graph(self, g):
        return KrylovOperations(self)


def _kept(work: Any) -> Tensor:
    KEPT.append(work)
    return torch.tensor([len(KEPT) - 1])


def _flag(value: bool) -> Tensor:
    return torch.tensor(value)


def root_begin(z, relative_to, place):
    return _kept(GRAPHS[place].solve(GRAPHS[place], relative_to))


def root_advance(state, z, fz, g, going):
    following, more = KEPT[int(state)].advance(z, fz, g)
    return following, _flag(more)


def root_result(state, z, going):
    return KEPT[int(state)].result()


def _next(space: Any, v: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    given = torch.zeros_like(like) if v is None else v.clone()
    return given.contiguous(), _flag(v is not None)


def krylov_begin(g, limit, most, place):
    space = GRAPHS[place].space(TORCH, g.clone(), limit, int(most))
    return _kept(space), *_next(space, space.extend(None), g)


def krylov_extend(state, product, going):
    space = KEPT[int(state)]
    return _next(space, space.extend(product), product)


def krylov_minimise(state, v, going):
    space = KEPT[int(state)]
    return space.minimise(), space.steps.clone(), torch.tensor(space.size)


def _whole(like, *size):
    return like.new_empty(size, dtype=torch.int64)


def _vector(like):
    return like.new_empty(like.shape), like.new_empty((), dtype=torch.bool)


def _found(state, z, going):
    batch = z.shape[0]
    residual, status = z.new_empty(batch, dtype=real_dtype(z)), z.new_empty(batch, dtype=torch.int8)
    return z.new_empty(z.shape), residual, status, _whole(z, batch), _whole(z)


for name, signature, work, fake in (
    ("root_begin", "Tensor z, Tensor? relative_to, int place) -> Tensor", root_begin,
     lambda z, relative_to, place: _whole(z, 1)),
    ("root_advance", "Tensor state, Tensor z, Tensor fz, Tensor? g, Tensor going)"
     " -> (Tensor, Tensor)", root_advance, lambda state, z, fz, g, going: _vector(z)),
    ("root_result", "Tensor state, Tensor z, Tensor going)"
     " -> (Tensor, Tensor, Tensor, Tensor, Tensor)", root_result, _found),
    ("krylov_begin", "Tensor g, Tensor limit, Tensor most, int place) -> (Tensor, Tensor, Tensor)",
     krylov_begin, lambda g, limit, most, place: (_whole(g, 1), *_vector(g))),
    ("krylov_extend", "Tensor state, Tensor product, Tensor going) -> (Tensor, Tensor)",
     krylov_extend, lambda state, product, going: _vector(product)),
    ("krylov_minimise", "Tensor state, Tensor v, Tensor going) -> (Tensor, Tensor, Tensor)",
     krylov_minimise,
     lambda state, v, going: (v.new_empty(v.shape), _whole(v, v.shape[0]), _whole(v))),
):  # fmt: skip
    OPERATIONS.define(f"{name}({signature}")
    OPERATIONS.impl(name, work, "CPU")
    torch.library.register_fake(f"implicitcore_tests::{name}", fake, lib=OPERATIONS)
