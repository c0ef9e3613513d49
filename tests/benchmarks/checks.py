"""What the checks of a solve cost: the same solve with all of them, and with none
(``make bench-checks``).

They are switched off in this program alone, by replacing each with a function that does nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks.markdown import missed, table
from benchmarks.problem import Problem
from benchmarks.root_problems import CONV, MLP_32, problems
from benchmarks.timing import interleave, keep_memory
from implicitcore.gradients import approximate, implicit, phantom
from implicitcore.gradients import run as runs
from implicitcore.root_solvers import convergence, judgement, stepwise
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.limits import Limits
from implicitcore.system.memory import Memory
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing

LIMITS = {CONV: 1.03, MLP_32: 1.08}
"""Of the time with the checks over that without."""
ON, OFF = "with", "without"
FORWARD, BOTH = "forward", "forward and backward"


def nothing(*_: object, **__: object) -> None:
    """In place of a check."""


def passed(result: Any, *_: object) -> Any:
    """In place of a copy, where one is needed."""
    return result


def trusting(memory: Memory) -> None:
    """In place of what a solve asks of the memory that f uses."""
    memory.copies_state = memory.copies_result = memory.addresses = False
    memory.result = memory.pointer = None
    memory.version = 0


CHECKS: tuple[tuple[Any, str, Any], ...] = (
    (runs, "check_random", nothing),
    (runs, "check_sharding", nothing),
    (runs, "check_transforms", nothing),
    (runs, "apart", passed),
    (implicit, "check_residual", nothing),
    (approximate, "check_residual", nothing),
    (phantom, "check_residual", nothing),
    (convergence, "check_range", nothing),
    (convergence, "check_known", nothing),
    (stepwise, "check_like", nothing),
    (judgement, "check_solution", nothing),
    (StopTest, "_check_apart", nothing),
    (Limits, "trust", nothing),
    (System, "check_function", nothing),
    (System, "with_function_state", lambda system: system),
    (Packing, "check", nothing),
    (Memory, "__init__", trusting),
)
"""Where each is called, its name there, and what stands in for it."""
ORIGINAL = tuple((owner, name, getattr(owner, name)) for owner, name, _ in CHECKS)


def works(problem: Problem, tol: float, span: str) -> Mapping[str, Callable[[], object]]:
    """The same step in both ways; both pay for the switch."""

    def run(checks: Sequence[tuple[Any, str, Any]]) -> None:
        for owner, name, function in checks:
            setattr(owner, name, function)
        try:
            step(problem, tol, span)
        finally:
            for owner, name, function in ORIGINAL:
                setattr(owner, name, function)

    return {ON: partial(run, ORIGINAL), OFF: partial(run, CHECKS)}


def step(problem: Problem, tol: float, span: str) -> Tensor:
    """One solve, and its backward pass."""
    solver = ic.Anderson(tol=tol, max_steps=problem.budget)
    if span == FORWARD:
        with torch.no_grad():
            return ic.fixed_point(
                problem.f, problem.z0, problem.x, solver=solver, on_failure="ignore"
            ).z
    z = ic.fixed_point(
        problem.f,
        problem.z0,
        problem.x,
        solver=solver,
        gradient=ic.Implicit(solver),
        on_failure="ignore",
    ).z
    problem.gradients(z)
    return z


def measure(repetitions: int, quick: bool) -> Iterator[tuple[str, ...]]:
    """A line for each problem, tolerance and span."""
    for problem in problems(quick):
        if problem.name not in LIMITS:
            continue
        for tol in problem.tolerances:
            for span in (FORWARD, BOTH):
                yield compare(problem, tol, span, repetitions)


def compare(problem: Problem, tol: float, span: str, repetitions: int) -> tuple[str, ...]:
    seconds = interleave(
        works(problem, tol, span), repetitions, seed=0, window=0.0, clock=time.process_time
    )
    ratio = seconds[ON] / seconds[OFF]
    shown = (f"{seconds[way] * 1e6:.0f}" for way in (ON, OFF))
    cost = f"{100 * (ratio - 1):+.1f} %"
    return (problem.name, f"{tol:.0e}", span, *shown, cost, missed(ratio, LIMITS[problem.name]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny problems: does it run?")
    parser.add_argument("--repetitions", type=int, default=301, help="(default %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    header = ("problem", "tol", "span", "us with", "us without", "cost", "limit")
    repetitions = 2 if options.quick else options.repetitions
    print(*table(header, measure(repetitions, options.quick)), sep="\n")


if __name__ == "__main__":
    keep_memory("benchmarks.checks")
    main()
