"""One configuration measured: its time beside the default's, and the error of its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from implicitcore import ImplicitLayer
from implicitcore_lab.errors import first_line
from implicitcore_lab.tuning.problem import Problem, failure, gradient_error
from implicitcore_lab.tuning.reference import Reference
from implicitcore_lab.tuning.timing import interleaved, ratio

SLOW = 3.0
"""A step that takes so many times the default's is timed once."""


class Refused(Exception):
    """A configuration that cannot be used here; says why."""


@dataclass(frozen=True)
class Measured:
    """What a configuration reached.

    Attributes:
        time_ratio: time of a training step over that of the default, timed side by side.
        milliseconds: of a step: CPU time, or time of the CUDA stream.
        gradient_error: the largest relative error of the gradient of any leaf.
        evaluations: of f in the forward pass.
        backward: vector-Jacobian products and evaluations in the backward pass.
    """

    time_ratio: float
    milliseconds: float
    gradient_error: float
    evaluations: int
    backward: int


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        number: in the study; the default's is 0.
        parts: solver, gradient and backend as configurations; empty is the default.
        measured: None where it was refused.
        reason: why it was refused.
        worker: the machine and the process.
    """

    number: int
    parts: Mapping[str, Any]
    measured: Measured | None
    reason: str = ""
    worker: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is the configuration that the others are compared with."""
        return not self.parts


def measure(problem: Problem, exact: Reference, layer: ImplicitLayer, repeats: int) -> Measured:
    """Time a step of a layer beside the default's, and judge its gradient.

    Raises:
        Refused: the layer cannot be used, or a sample failed.
    """
    try:
        solution, gradients = problem.seeded_step(layer)
    except Exception as error:  # a solver may be anybody's
        raise Refused(first_line(error)) from error
    reason = failure(solution)
    if reason:
        raise Refused(reason)
    error = gradient_error(gradients, exact.gradients)
    if not isfinite(error):
        raise Refused("the gradient is not finite")
    backward = solution.backward.vjps + solution.backward.evaluations
    milliseconds, times = time_beside(problem, [layer], repeats)
    return Measured(times[0], milliseconds[0], error, solution.evaluations, backward)


def time_beside(
    problem: Problem, layers: Sequence[ImplicitLayer], repeats: int
) -> tuple[list[float], list[float]]:
    """Time the steps of layers and of the default in turns.

    Returns:
        The milliseconds of a step of each layer, and their ratios to the default's.
    """
    works = [lambda layer=layer: problem.step(layer) for layer in (problem.layer, *layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = interleaved(works, problem.device, 1)
        if min(ratio(times, found[0]) for times in found[1:]) < SLOW and repeats > 1:
            found = interleaved(works, problem.device, repeats)
    default, *others = found
    return [median(times) for times in others], [ratio(times, default) for times in others]
