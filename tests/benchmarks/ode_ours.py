"""The contenders of this library on trajectories and at a steady state: in its loop of torch, with
the C++ backend, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import implicitcore as ic
from benchmarks.counting import trajectory
from benchmarks.harness import OURS
from benchmarks.problem import Contender, Outcome, Problem
from benchmarks.root_contenders import CPP, compiled_step, runs
from implicitcore.registry.registry import REGISTRY

METHODS = {"dopri5": ic.Dopri5, "tsit5": ic.Tsit5}
EQUAL_STEPS = {"euler": (ic.Euler, 200), "rk4": (ic.RK4, 50)}
"""Of methods without an error estimate, which no tolerance says anything to."""
UNROLLED, ADJOINT, CHECKPOINTED = "unrolled", "adjoint", "checkpointed"
IMPLICIT = "implicit gmres"
COMPILED = "compiled"
WAYS = ((), (CPP,), (COMPILED,), (COMPILED, CPP))
"""The last at a steady state alone: the steps of a compiled trajectory are torch's."""
SETTLING: dict[str, dict[str, Any]] = {
    "tsit5": {"rtol": 0.1, "atol": 0.1},
    "adams": {"rtol": 0.5, "atol": 0.5, "max_order": 3},
}
"""ODE solvers on the way to a steady state: accuracy on the way is not what is wanted."""

Way = tuple[str, ...]


def settling(name: str) -> str:
    """The method of a row."""
    return f"steady state, {name}"


def run(ways: tuple[Way, ...], quick: bool) -> list[Way]:
    """Those that can run here; compiling takes a minute, so no quick run does."""
    missing = {*(() if runs(CPP) else (CPP,)), *((COMPILED,) if quick else ())}
    return [way for way in ways if not missing.intersection(way)]


def trajectories(quick: bool) -> list[Contender]:
    """The methods with each gradient, and those of equal steps and of many steps beside them."""
    ways = run(WAYS[:3], quick)
    found = [
        integration(method, gradient, way)
        for way in ways
        for method in METHODS
        for gradient in (UNROLLED, ADJOINT, CHECKPOINTED)
        if gradient == UNROLLED or not way or gradient == CHECKPOINTED
    ]
    others = ("adams", *EQUAL_STEPS)
    return found + [
        integration(method, UNROLLED, way) for way in ways if CPP not in way for method in others
    ]


def integration(method: str, gradient: str, way: Way = (), title: str = "") -> Contender:
    """Of the steps that :func:`integrate` prepares."""
    name = ", ".join([title or method, *way])
    return prepared(name, gradient, way, partial(integrate, method, gradient))


def prepared(name: str, gradient: str, way: Way, prepare: Callable[..., Any]) -> Contender:
    """Of steps that are prepared for a problem, a tolerance and a ``way``.

    Counts and memory of compiled code are those of the eager run: neither shows in it.
    """
    counts = partial(prepare, way=()) if COMPILED in way else None
    return Contender(OURS, name, gradient, partial(prepare, way=way), trajectory, counts)


def integrate(
    method: str, gradient: str, problem: Problem, tol: float, way: Way = ()
) -> Callable[[], Outcome]:
    """Its state at the end and the gradients, at one relative and absolute tolerance."""
    solver, strategy = _solver(method, tol, problem.budget), part("gradient", gradient)
    if COMPILED in way:
        field = ic.VectorField(_InTime(problem.f), autonomous=False)
        return compiled_step(ic.ImplicitLayer(field, solver=solver, gradient=strategy), problem)
    times, backend = torch.tensor([0.0, 1.0]), CPP if CPP in way else None

    def step() -> Outcome:
        solution = ic.integrate(
            lambda t, z, x: problem.f(z, x),
            problem.z0,
            problem.x,
            times=times,
            solver=solver,
            gradient=strategy,
            backend=backend,
            on_failure="ignore",
        )
        z = solution.z[-1]
        return Outcome(z, problem.gradients(z), solution.steps)

    return step


def _solver(method: str, tol: float, budget: int) -> Any:
    if method in EQUAL_STEPS:
        kind, steps = EQUAL_STEPS[method]
        return kind(dt=1 / steps, max_steps=steps + 1)
    return {**METHODS, "adams": ic.Adams}[method](rtol=tol, atol=tol, max_steps=budget)


class _InTime(nn.Module):
    """f(z, x) as a function of t, z and x."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, z: Tensor, x: Any) -> Tensor:
        del t
        return self.f(z, x)


def settled(name: str, way: Way) -> Contender:
    """To the steady state by an ODE solver."""
    solver = ic.SteadyState(ode_solver=part("ode_solver", name, **SETTLING[name]))
    method = ", ".join([settling(name), *way])
    counts = partial(equilibrium, solver) if COMPILED in way else None
    return Contender(OURS, method, IMPLICIT, partial(equilibrium, solver, way=way), counts=counts)


def equilibrium(solver: Any, problem: Problem, tol: float, way: Way = ()) -> Callable[[], Outcome]:
    """By a root solver, with the implicit gradient."""
    solver, gradient = (
        replace(solver, tol=tol, max_steps=problem.budget),
        ic.Implicit(ic.GMRES(tol=tol)),
    )
    backend = CPP if CPP in way else None
    if COMPILED in way:
        dynamics = ic.FixedPoint(problem.f)
        layer = ic.ImplicitLayer(dynamics, solver=solver, gradient=gradient, backend=backend)
        return compiled_step(layer, problem)

    def step() -> Outcome:
        solution = ic.fixed_point(
            problem.f,
            problem.z0,
            problem.x,
            solver=solver,
            gradient=gradient,
            backend=backend,
            on_failure="ignore",
        )
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    return step


def part(kind: str, name: str, **options: Any) -> Any:
    """What is registered under a name."""
    return REGISTRY.find(kind, name).load()(**options)
