"""The options that solvers share, each with one name, one type and one meaning.

A solver whose number is another quantity gives it another name: GMRES has ``max_products``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from implicitcore.options.options import Options
from implicitcore.options.types import (
    Controller,
    Count,
    ErrorNorm,
    Positive,
    SharedStep,
    Tolerance,
)


@dataclass(frozen=True, kw_only=True)
class ResidualTolerance(Options):
    """When a root solver stops.

    Attributes:
        tol: relative tolerance per sample, in the 2-norm: stop where ``|f(z) - z| <= tol |f(z)| +
            atol``; in ``find_root`` ``|g(z)| <= tol max(1, min(|g(z0)|, |z + g(z)|)) + atol``, and
            in a backward pass relative to the incoming gradient. Under autocast no less than a
            quarter of a unit of its dtype, 2e-3 in bfloat16.
        atol: absolute tolerance beside it, in the units of z.
    """

    tol: Tolerance = 1e-4
    atol: Tolerance = 0.0


@dataclass(frozen=True, kw_only=True)
class Stopping(ResidualTolerance):
    """When an iteration stops, or gives up.

    Attributes:
        max_steps: most iterates of a sample, the start included: no entry of ``solution.steps`` is
            larger.
    """

    max_steps: Count = 50


@dataclass(frozen=True, kw_only=True)
class StepLimit(Options):
    """When an integration gives up.

    Attributes:
        max_steps: most steps of a sample, rejected ones included, from one time at which steps have
            to end to the next: over all output times, but for ``hit_times`` and ``step_at``.
    """

    max_steps: Count = 1000


@dataclass(frozen=True, kw_only=True)
class ErrorTolerance(Options):
    """The local error that a step may make: atol + rtol ``|z|``, in the root mean square.

    Attributes:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, in the units of z: a number, or one for each number in
            the state of a sample, as it is flattened.
    """

    rtol: Positive = 1e-3
    atol: Positive | tuple[Positive, ...] = 1e-6


@dataclass(frozen=True, kw_only=True)
class ErrorControl(ErrorTolerance):
    """How steps follow from their errors, per sample.

    Attributes:
        first_step: the first step, in the units of the times; None estimates it, at one evaluation.
        controller: how the next step follows from the errors of this one (``"i"``), of two
            (``"pi"``) or of three (``"pid"``), or their exponents (a, b, c); see
            :class:`~implicitcore.ode_solvers.step_size.Adaptive`. More memory, fewer rejections
            where stability limits the step.
        min_step: a sample that would need a shorter step has diverged; the last before an output
            time may be shorter.
        max_step: no step is longer, where given: for a field or an event that a long step would
            jump over.
        norm: of a step's error: a function of the absolute values of the errors over what is
            allowed, ``[batch, n]``, that returns ``[batch]``; a step with at most 1 is accepted.
            None is the root mean square; :func:`~implicitcore.shared_error` makes the steps of all
            samples one. Only Python can give it.
    """

    first_step: Positive | None = None
    controller: Controller = "pi"
    min_step: Tolerance = 0.0
    max_step: Positive | None = None
    norm: Annotated[ErrorNorm | None, SharedStep] = None
