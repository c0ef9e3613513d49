"""The loop of the root solvers as one operation of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from implicitcore.errors import ConfigError
from implicitcore.graph.fused import solve_fused
from implicitcore.graph.iterations import (
    AndersonIteration,
    BadBroydenIteration,
    GoodBroydenIteration,
    Iteration,
    PicardIteration,
)
from implicitcore.graph.stop import Found, GraphStop, Samples
from implicitcore.graph.system import GraphSystem
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard
from implicitcore.system.evaluation import Evaluation
from implicitcore.tensors.norms import column

SOLVERS = (Picard, Anderson, Broyden)
"""The solvers whose loop a graph can take."""


def check_history(solver: Any) -> None:
    """Refuse a history in a dtype of its own, which a graph has not.

    Raises:
        ConfigError: the solver has one.
    """
    kept = getattr(solver, "history_dtype", None)
    if kept is not None:
        raise ConfigError(
            [
                f"history_dtype: a graph keeps the history in the dtype of the state; received "
                f"{kept!r} of {type(solver).__name__}, expected None"
            ]
        )


def iteration_of(solver: Any) -> Iteration[Any, Any]:
    """The iteration of a solver as a pure function.

    Raises:
        ConfigError: it has none.
    """
    check_history(solver)
    if isinstance(solver, Picard):
        return PicardIteration(solver)
    if isinstance(solver, Anderson):
        return AndersonIteration(solver)
    if isinstance(solver, Broyden):
        good = solver.variant == "good"
        return GoodBroydenIteration(solver) if good else BadBroydenIteration(solver)
    known = ", ".join(kind.__name__ for kind in SOLVERS)
    raise ConfigError([f"solver: {type(solver).__name__} has no loop in a graph; use {known}"])


def solve(solver: Any, system: GraphSystem, z0: Tensor) -> Found:
    """What the solver finds from z0, ``[batch, n]``, with the statuses of the eager loop.

    Every sample stops by itself, and the loop where all have. ``compact`` changes no result, and
    nothing here.
    """
    if system.iterations is not None:
        return solve_fused(system.iterations, system.function, z0)
    return solve_from(solver, system, system.evaluate(z0))


def solve_from(solver: Any, system: GraphSystem, first: Evaluation) -> Found:
    """The same from a point where f is known."""
    stop, iteration = GraphStop.at(system, solver, first), iteration_of(solver)

    def going(samples: Samples, now: Evaluation, memory: Any) -> Tensor:
        del now, memory
        return samples.active.any() & (samples.evaluations < solver.max_steps)

    def step(samples: Samples, now: Evaluation, memory: Any) -> tuple[Samples, Evaluation, Any]:
        z_next, memory = iteration.step(now, samples.grown, memory)
        z = torch.where(column(samples.active), z_next, now.z)
        now = system.evaluate(z)
        return stop.judge(samples, now), now, memory

    begin = stop.first(first), first, iteration.begin(first.z)
    samples, _, _ = while_loop(going, step, begin)
    return stop.ended(samples)
