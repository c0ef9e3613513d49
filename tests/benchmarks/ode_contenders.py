"""The contenders on trajectories and at a steady state: this library, torchdiffeq and torchode
where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import implicitcore as ic
from benchmarks import jax_peers, ode_ours
from benchmarks.counting import trajectory
from benchmarks.harness import EXACT, OURS
from benchmarks.ode_ours import (
    ADJOINT,
    COMPILED,
    IMPLICIT,
    METHODS,
    SETTLING,
    UNROLLED,
    WAYS,
    Way,
    equilibrium,
    integrate,
    prepared,
    settled,
    trajectories,
)
from benchmarks.ode_problems import HORIZON, Trajectory
from benchmarks.problem import Contender, Outcome, Prepare, Problem

TORCHDIFFEQ, TORCHODE = "torchdiffeq", "torchode"
SEMINORM, JOINT = "adjoint, seminorm", "adjoint, joint"
SMALLEST, LARGEST = 1e-7, 0.1
"""Tolerances of a step that make sense in float32."""


def contenders(problem: Problem, quick: bool) -> list[Contender]:
    """All that can run here; compiling takes a minute, so no quick run does."""
    if not isinstance(problem, Trajectory):
        ways = ode_ours.run(WAYS, quick)
        return [*(settled(name, way) for way in ways for name in SETTLING), *_other_equilibria()]
    found = trajectories(quick)
    if find_spec(TORCHDIFFEQ):
        found += [
            _integration(TORCHDIFFEQ, "dopri5", name, partial(_torchdiffeq, name))
            for name in (UNROLLED, ADJOINT, SEMINORM)
        ]
        found += _as_exact(problem, quick)
    if find_spec(TORCHODE):
        pairs = [(method, name) for method in METHODS for name in (UNROLLED, JOINT)]
        found += [
            _integration(TORCHODE, method, name, partial(_torchode, method, name))
            for method, name in pairs
        ]
        found += [] if quick else map(_compiled, METHODS)
    return found if quick else found + jax_peers.trajectories(trajectory)


def _integration(library: str, method: str, gradient: str, prepare: Prepare) -> Contender:
    return Contender(library, method, gradient, prepare, trajectory)


def _torchdiffeq(
    gradient: str, problem: Problem, tol: float, field: nn.Module | None = None, end: float = 1.0
) -> Callable[[], Outcome]:
    """Its defaults but for the tolerances; x is given to the adjoint as its parameters are."""
    library = importlib.import_module(TORCHDIFFEQ)
    field = field or Field(problem.f, problem.x)
    options: dict[str, Any] = (
        {} if gradient == UNROLLED else {"adjoint_params": tuple(problem.inputs)}
    )
    if gradient == SEMINORM:
        options["adjoint_options"] = {"norm": "seminorm"}
    solve = library.odeint if gradient == UNROLLED else library.odeint_adjoint
    times = torch.tensor([0.0, end])

    def step() -> Outcome:
        z = solve(field, problem.z0, times, rtol=tol, atol=tol, method="dopri5", **options)[-1]
        return Outcome(z, problem.gradients(z))

    return step


def _as_exact(problem: Trajectory, quick: bool) -> list[Contender]:
    """Ours at the largest tolerance, by factors of two, whose last state is no further off than
    torchdiffeq's."""
    theirs = partial(_torchdiffeq, UNROLLED)

    @cache
    def loosest(method: str, tol: float) -> float:
        allowed, ours = _final_error(theirs, problem, tol), partial(integrate, method, UNROLLED)
        while tol > SMALLEST and _final_error(ours, problem, tol) > allowed:
            tol /= 2
        while tol < LARGEST and _final_error(ours, problem, 2 * tol) <= allowed:
            tol *= 2
        return tol

    def exact(method: str, gradient: str, way: Way = ()) -> Contender:
        def prepare(problem: Problem, tol: float, way: Way) -> Callable[[], Outcome]:
            return integrate(method, gradient, problem, loosest(method, tol), way)

        return prepared(", ".join([method, EXACT, *way]), gradient, way, prepare)

    ways = ode_ours.run(WAYS[:3], quick)
    found = [exact(method, UNROLLED, way) for way in ways for method in METHODS]
    return [*found, exact("dopri5", ADJOINT)]


def _final_error(prepare: Prepare, problem: Trajectory, tol: float) -> float:
    return problem.reference.residual(prepare(problem, tol)().z.detach())


def _torchode(
    method: str, gradient: str, problem: Problem, tol: float, compiled: bool = False
) -> Callable[[], Outcome]:
    """As its documentation shows it: integral control, the end alone, else its defaults."""
    library = importlib.import_module(TORCHODE)
    batch, *shape = problem.z0.shape
    term = library.ODETerm(Flat(problem.f, shape), with_args=True)
    stepper = getattr(library, method.capitalize())(term=term)
    control = library.IntegralController(atol=tol, rtol=tol, term=term)
    joint, unrolled = partial(library.JointBacksolveAdjoint, term), library.AutoDiffAdjoint
    solve = (joint if gradient == JOINT else unrolled)(stepper, control).solve
    if compiled:
        torch._dynamo.config.recompile_limit = (
            64  # else the third problem would run eagerly, with a warning
        )
        solve = torch.compile(solve)
    begin, end = torch.zeros(batch), torch.ones(batch)

    def step() -> Outcome:
        start = library.InitialValueProblem(problem.z0.flatten(1), begin, end)
        z = solve(start, args=problem.x).ys[:, -1].reshape(problem.z0.shape)
        return Outcome(z, problem.gradients(z))

    return step


def _compiled(method: str) -> Contender:
    """Counts and memory are those of the eager run: neither shows in compiled code."""
    eager, compiled = (
        partial(_torchode, method, UNROLLED),
        partial(_torchode, method, UNROLLED, compiled=True),
    )
    return Contender(TORCHODE, f"{method}, {COMPILED}", UNROLLED, compiled, trajectory, eager)


def _other_equilibria() -> list[Contender]:
    found = [Contender(OURS, "picard", IMPLICIT, partial(equilibrium, ic.Picard()))]
    if find_spec(TORCHDIFFEQ):
        found.append(
            _integration(TORCHDIFFEQ, f"dopri5 to T = {HORIZON:g}", ADJOINT, _torchdiffeq_to_rest)
        )
    return found


def _torchdiffeq_to_rest(problem: Problem, tol: float) -> Callable[[], Outcome]:
    return _torchdiffeq(ADJOINT, problem, tol, Descent(problem.f, problem.x), HORIZON)


class Field(nn.Module):
    """f(z, x) as a function of t and z."""

    def __init__(self, f: nn.Module, x: Any) -> None:
        super().__init__()
        self.f, self.x = f, x

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        del t
        return self.f(z, self.x)


class Descent(Field):
    """f(z, x) - z, whose steady state is the fixed point."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return super().forward(t, z) - z


class Flat(nn.Module):
    """f on states ``[batch, features]``."""

    def __init__(self, f: nn.Module, shape: list[int]) -> None:
        super().__init__()
        self.f, self.shape = f, shape

    def forward(self, t: Tensor, z: Tensor, x: Any) -> Tensor:
        del t
        return self.f(z.reshape(-1, *self.shape), x).flatten(1)
