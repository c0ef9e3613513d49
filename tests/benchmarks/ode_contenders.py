"""The contenders on trajectories and at a steady state: this library, torchdiffeq and torchode
where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import implicitcore as ic
from benchmarks import jax_peers
from benchmarks.counting import trajectory
from benchmarks.harness import EXACT, OURS
from benchmarks.ode_problems import HORIZON, Trajectory
from benchmarks.problem import Contender, Outcome, Prepare, Problem
from implicitcore.registry.registry import REGISTRY

TORCHDIFFEQ, TORCHODE = "torchdiffeq", "torchode"
METHODS = {"dopri5": ic.Dopri5, "tsit5": ic.Tsit5}
UNROLLED, ADJOINT, CHECKPOINTED = "unrolled", "adjoint", "checkpointed"
SEMINORM, JOINT = "adjoint, seminorm", "adjoint, joint"
COMPILED = "compiled"
IMPLICIT = "implicit gmres"
SMALLEST, LARGEST = 1e-7, 0.1
"""Tolerances of a step that make sense in float32."""
SETTLING: dict[str, dict[str, Any]] = {
    "tsit5": {"rtol": 0.1, "atol": 0.1},
    "adams": {"rtol": 0.5, "atol": 0.5, "max_order": 3},
}
"""ODE solvers on the way to a steady state: accuracy on the way is not what is wanted."""


def settling(name: str) -> str:
    """The method of a row."""
    return f"steady state, {name}"


def contenders(problem: Problem, quick: bool) -> list[Contender]:
    """All that can run here; compiling takes a minute, so no quick run does."""
    if not isinstance(problem, Trajectory):
        return [
            *map(_settling, (name for name in SETTLING if _registered("ode_solver", name))),
            *_other_equilibria(),
        ]
    gradients = [
        name for name in (UNROLLED, ADJOINT, CHECKPOINTED) if _registered("gradient", name)
    ]
    found = [
        _integration(OURS, method, name, partial(_implicitcore, method, name))
        for method in METHODS
        for name in gradients
    ]
    if find_spec(TORCHDIFFEQ):
        found += [
            _integration(TORCHDIFFEQ, "dopri5", name, partial(_torchdiffeq, name))
            for name in (UNROLLED, ADJOINT, SEMINORM)
        ]
        found += _as_exact(problem)
    if find_spec(TORCHODE):
        pairs = [(method, name) for method in METHODS for name in (UNROLLED, JOINT)]
        found += [
            _integration(TORCHODE, method, name, partial(_torchode, method, name))
            for method, name in pairs
        ]
        found += [] if quick else map(_compiled, METHODS)
    return found if quick else found + jax_peers.trajectories(trajectory)


def _registered(kind: str, name: str) -> bool:
    return any(part.name == name for part in REGISTRY.parts(kind))


def _part(kind: str, name: str, **options: Any) -> Any:
    return REGISTRY.find(kind, name).load()(**options)


def _integration(library: str, method: str, gradient: str, prepare: Prepare) -> Contender:
    return Contender(library, method, gradient, prepare, trajectory)


def _implicitcore(
    method: str, gradient: str, problem: Problem, tol: float
) -> Callable[[], Outcome]:
    solver, strategy = (
        METHODS[method](rtol=tol, atol=tol, max_steps=problem.budget),
        _part("gradient", gradient),
    )
    times = torch.tensor([0.0, 1.0])

    def step() -> Outcome:
        solution = ic.integrate(
            lambda t, z, x: problem.f(z, x),
            problem.z0,
            problem.x,
            times=times,
            solver=solver,
            gradient=strategy,
            on_failure="ignore",
        )
        z = solution.z[-1]
        return Outcome(z, problem.gradients(z), solution.steps)

    return step


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


def _as_exact(problem: Trajectory) -> list[Contender]:
    """Ours at the largest tolerance, by factors of two, whose last state is no further off than
    torchdiffeq's."""
    theirs, ours = partial(_torchdiffeq, UNROLLED), partial(_implicitcore, "dopri5", UNROLLED)

    @cache
    def loosest(tol: float) -> float:
        allowed = _final_error(theirs, problem, tol)
        while tol > SMALLEST and _final_error(ours, problem, tol) > allowed:
            tol /= 2
        while tol < LARGEST and _final_error(ours, problem, 2 * tol) <= allowed:
            tol *= 2
        return tol

    def prepare(gradient: str, problem: Problem, tol: float) -> Callable[[], Outcome]:
        return _implicitcore("dopri5", gradient, problem, loosest(tol))

    return [
        _integration(OURS, f"dopri5, {EXACT}", name, partial(prepare, name))
        for name in (UNROLLED, ADJOINT)
    ]


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


def _settling(name: str) -> Contender:
    solver = _part("ode_solver", name, **SETTLING[name])
    return Contender(
        OURS, settling(name), IMPLICIT, partial(_equilibrium, ic.SteadyState(ode_solver=solver))
    )


def _other_equilibria() -> list[Contender]:
    found = [Contender(OURS, "picard", IMPLICIT, partial(_equilibrium, ic.Picard()))]
    if find_spec(TORCHDIFFEQ):
        found.append(
            _integration(TORCHDIFFEQ, f"dopri5 to T = {HORIZON:g}", ADJOINT, _torchdiffeq_to_rest)
        )
    return found


def _equilibrium(solver: Any, problem: Problem, tol: float) -> Callable[[], Outcome]:
    solver, gradient = (
        replace(solver, tol=tol, max_steps=problem.budget),
        ic.Implicit(ic.GMRES(tol=tol)),
    )

    def step() -> Outcome:
        solution = ic.fixed_point(
            problem.f, problem.z0, problem.x, solver=solver, gradient=gradient, on_failure="ignore"
        )
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    return step


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
