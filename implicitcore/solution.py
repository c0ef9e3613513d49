"""What a solve returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

from implicitcore.errors import ImplicitCoreError, InputError


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0  # the tolerance was met, or the last time was reached
    MAX_STEPS = 1  # stopped above the tolerance, or short of the last time
    DIVERGED = 2  # the residual grew far beyond its start, or the step underflowed
    NON_FINITE = 3  # f returned a NaN or an infinity
    STALLED = 4  # the residual stopped falling above the tolerance


@dataclass
class Backward:
    """What the backward solve of a strategy did.

    Empty until a backward pass has run, and filled by the last one.

    Attributes:
        vjps: vector-Jacobian products of f spent so far, over all backward passes.
        evaluations: evaluations of f spent in backward (the adjoint re-integrates the state).
        residual: ``[batch]``, residual of the linear system relative to the incoming gradient,
            where there is one.
        status: ``[batch]`` int8, one :class:`Status` per sample, where there is a backward solve.
    """

    vjps: int = 0
    evaluations: int = 0
    residual: Tensor | None = None
    status: Tensor | None = None


class Judged(NamedTuple):
    """What a stop test measured: whatever else a solver returns is measured again."""

    z: Tensor  # [batch, n]
    residual: Tensor  # [batch]
    status: Tensor  # [batch]
    relative: Tensor | None  # [batch], the residual as it was compared with tol; None where tol = 0
    trace: Tensor | None = None  # [steps, batch], the residual after each step


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The result of a solve, with what it cost and how it ended, per sample.

    Attributes:
        z: the best iterate (shaped like z0); for a trajectory ``[times, batch, ...]``.
        start: the z0 the solve began from, as the start gave it.
        residual: ``[batch]``, the measured 2-norm of f(z) - z at ``z``; None where nothing is to
            vanish (trajectories).
        status: ``[batch]`` int8, one :class:`Status` per sample.
        steps: ``[batch]``, steps that each sample took before it stopped.
        evaluations: evaluations of f in the forward pass (each of the whole batch).
        backward: what the backward pass spent and reached.
        times: the output times of a trajectory, ``[times]``.
        iterates: ``[k, batch, ...]``, the iterates that ``Unrolled(iterates=...)`` asks for, each
            with its graph.
        event_times: ``[batch]``, when the event of a trajectory happened, NaN where it did not;
            None where there was none to watch.
        interpolant: the continuous extension of a trajectory, when asked for; see
            :meth:`interpolate`.
        judged: what the stop test measured, where one did.
    """

    z: Any
    start: Any
    residual: Tensor | None
    status: Tensor
    steps: Tensor
    evaluations: int
    backward: Backward = field(default_factory=Backward)
    times: Tensor | None = None
    iterates: Any = None
    event_times: Tensor | None = None
    interpolant: Callable[[Tensor], Any] | None = None
    judged: Judged | None = field(default=None, repr=False)

    def interpolate(self, t: Tensor) -> Any:
        """The states of a trajectory at other times, by the continuous extension of its steps.

        ``integrate(..., dense=True)``.

        Arguments:
            t: ``[T]``, or ``[batch, T]`` for times of each sample's own, in any order.

        Returns:
            ``[T, batch, ...]``, differentiable where the trajectory is, and with respect to t; NaN
            where t is later than the time at which a sample ended (it failed, or its event
            happened).

        Raises:
            InputError: t has another shape or is outside of the span; the solution has no
                continuous extension.
        """
        if self.interpolant is None:
            raise InputError(
                "this solution has no values between its times: ask for them, "
                "integrate(..., dense=True)"
            )
        return self.interpolant(t)

    def amended(self, **changes: Any) -> Solution:
        """A copy with other values of some attributes.

        ``dataclasses.replace`` at a fifth of its time, which every solve would pay.
        """
        copy = object.__new__(Solution)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    @property
    def trace(self) -> Tensor | None:
        """``[steps, batch]``, the residual after each step, when asked for."""
        return None if self.judged is None else self.judged.trace

    @property
    def relative_residual(self) -> Tensor | None:
        """``[batch]``, the residual as it was compared with ``tol``.

        ``residual / (scale + atol / tol)``, where the scale is ``|f(z)|``, or in ``find_root`` that
        of g. None where there is none (``tol=0``, trajectories).
        """
        return None if self.judged is None else self.judged.relative

    @property
    def failed(self) -> bool:
        """Whether a sample did not converge: one look at the device."""
        return bool(self.status.any())  # CONVERGED is zero

    @property
    def converged(self) -> Tensor:
        """``[batch]`` bool, True where the status is converged."""
        return self.status == Status.CONVERGED

    def summary(self) -> str:
        """One line: how many samples ended how, and the worst residual as it was compared with tol."""
        counts = Counter(self.status.tolist())
        parts = [f"{counts[status]} {status.name.lower()}" for status in Status if counts[status]]
        line = (
            f"{len(self.status)} samples: {', '.join(parts) or 'none'}; "
            f"{self.evaluations} evaluations"
        )
        relative = self.relative_residual
        worst = self.residual if relative is None else relative
        if worst is not None and worst.numel():
            kind = "residual" if relative is None else "relative residual"
            line += f"; worst {kind} {worst.max().item():.3g}"
        if self.times is not None and counts[Status.MAX_STEPS]:
            line += (
                "; out of steps before the last time: raise max_steps, or take an implicit "
                "method where the dynamics are stiff"
            )
        return line

    def raise_if_failed(self) -> Solution:
        """Return self when every sample converged.

        Raises:
            SolveError: at least one sample did not; the error carries this solution.
        """
        if self.failed:
            raise SolveError(f"the solve failed: {self.summary()}", self)
        return self


class SolveError(ImplicitCoreError, RuntimeError):
    """A solve ended without an answer for at least one sample.

    Arguments:
        message: what failed.
        solution: the solution with its status per sample.
    """

    def __init__(self, message: str, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.solution = solution
