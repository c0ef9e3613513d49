"""What a solve costs beside its evaluations: a solve of one evaluation, beside f and TorchDEQ
(``make bench-curves``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks.counting import Counted
from benchmarks.curves import Curves, Point, Timing
from benchmarks.problem import Outcome, Problem
from benchmarks.root_contenders import COMPILED, CPP, METHODS, TORCHDEQ, runs, torchdeq
from benchmarks.root_problems import Dense, general, posed
from benchmarks.timing import keep_memory

N, BATCH, TOL = 32, 8, 1e-3
FORWARD, BOTH = "forward", "forward and backward"
F, LIMITS = 9, {FORWARD: 90, BOTH: 350}
"""Microseconds: at most so many, where f takes 9."""
Work = Callable[[], Outcome]
Make = Callable[[Problem], Work]


class Begun(Problem):
    """From its own solution; where no graph is recorded, no gradient is asked for."""

    def gradients(self, z: Tensor) -> list[Tensor]:
        return super().gradients(z) if torch.is_grad_enabled() else []

    @classmethod
    def at_the_end(cls) -> Begun:
        """tanh(W z + x), |W| = 0.05."""
        made = posed("fixed cost", Dense(general(N, 0.05)), (BATCH, N))
        return cls(made.name, made.f, made.x, made.reference.z.float(), made.v)


def ours(method: str, backend: str | None, compiled: bool, problem: Problem) -> Work:
    """A layer, its backward solve by the forward method."""
    solver = METHODS[method](tol=TOL)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(problem.f), solver=solver, gradient=ic.Implicit(solver), backend=backend
    )
    solve = (ic.compile(layer) if compiled else layer).solve

    def step() -> Outcome:
        z = solve(problem.x, problem.z0).z
        return Outcome(z, problem.gradients(z))

    return step


def makers(quick: bool) -> dict[str, Make]:
    """By the name of a row. Compiling takes minutes: no quick run does."""
    found: dict[str, Make] = {}
    for backend in (None, *([CPP] if runs(CPP) else [])):
        for compiled in (False,) if quick else (False, True):
            for method in METHODS:
                parts = [method, *([COMPILED] if compiled else []), backend or "torch"]
                found[", ".join(parts)] = partial(ours, method, backend, compiled)
    if find_spec(TORCHDEQ):
        found |= {
            f"{TORCHDEQ}, {method}": lambda problem, method=method: torchdeq(method, problem, TOL)
            for method in METHODS
        }
    return found


def fixed_cost(span: str, name: str, timing: Timing) -> Iterator[Point]:
    """Each maker's step, and f by itself; evaluations with their products."""
    problem = Begun.at_the_end()
    exact = problem.reference
    with torch.set_grad_enabled(span == BOTH):
        works: dict[str, Callable[[], object]] = {
            row: make(problem) for row, make in makers(timing.quick).items()
        }

        def call() -> None:
            with torch.no_grad():
                problem.f(problem.z0, problem.x)

        seconds = timing({"f": call, **works}, time.process_time)
        yield Point(name, "f", 0, {"microseconds": 1e6 * seconds["f"]})
        for row, make in makers(timing.quick).items():
            values = {"microseconds": 1e6 * seconds[row], "f": seconds[row] / seconds["f"]}
            if COMPILED in row:  # counts do not show there
                outcome = make(problem)()
            else:
                counted = Counted(problem.f, BATCH)
                outcome = make(replace(problem, f=counted))()
                values["evaluations"] = counted.plain + counted.graphs + counted.products
            gradients = outcome.gradients
            residual = exact.residual(outcome.z.detach())
            values["error"] = exact.gradient_error(gradients) if gradients else residual
            yield Point(name, row, 0, values | {"at most": LIMITS[span] / F})


NAMES = {
    span: f"Fixed cost, {span}: {BATCH} x {N}, begun at the solution, tol 1e-3; at most {most} us "
    f"where f takes {F}"
    for span, most in LIMITS.items()
}
CASES = {name: partial(fixed_cost, span, name) for span, name in NAMES.items()}
CURVES = Curves("root_cases", __doc__, CASES, None, ("implicitcore", "torch", TORCHDEQ), threads=1)
main = CURVES.main

if __name__ == "__main__":
    keep_memory("benchmarks.root_cases")
    main()
