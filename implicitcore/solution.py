"""What a solve returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Self

from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ImplicitCoreError, InputError
from implicitcore.tensors.amended import amended


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
        vjps: vector-Jacobian products of f spent so far, over all backward passes and iterates.
        evaluations: evaluations of f spent in backward (the adjoint re-integrates the state).
        residual: ``[batch]``, residual of the linear system relative to the incoming gradient,
            where there is one.
        status: ``[batch]`` int8, one :class:`Status` per sample, where there is a backward solve.
    """

    vjps: int = 0
    evaluations: int = 0
    residual: Tensor | None = None
    status: Tensor | None = None


class Origin(NamedTuple):
    """What a solve began with: a solver that goes on from another's iterate is judged by it."""

    norm: Tensor  # [batch], the residual
    ceiling: Tensor  # [batch], above which a residual is lost


class Judged(NamedTuple):
    """What a stop test measured, or how: whatever else a solver returns is measured again."""

    z: Tensor  # [batch, n]
    residual: Tensor  # [batch]
    status: Tensor  # [batch]
    # [batch], the residual as it was compared with tol; None where tol = 0
    relative: Tensor | Callable[[], Tensor] | None
    trace: Tensor | None = None  # [steps, batch], the residual after each step
    origin: Origin | Callable[[], Origin] | None = None
    all_met: bool = False  # what is known of the status without a look at the device


@dataclass(frozen=True, kw_only=True)
class SolveResult:
    """What every solve returns: the states, what they cost, and how each sample ended.

    A root solver gives a :class:`Solution`, an ODE solver a :class:`Trajectory`, and a layer with
    an ODE solver its :class:`FinalState`.

    Attributes:
        z: the states, shaped like z0.
        start: the z0 the solve began from, as the initial guess gave it.
        status: ``[batch]`` int8, one :class:`Status` per sample.
        steps: ``[batch]``, steps that each sample took before it stopped.
        evaluations: evaluations of f in the forward pass (each of the whole batch).
        backward: what the backward pass spent and reached.
    """

    z: Any
    start: Any
    status: Tensor
    steps: Tensor
    evaluations: int
    backward: Backward = field(default_factory=Backward)

    def amended(self, **changes: Any) -> Self:
        """A copy with other values of some attributes."""
        return amended(self, **changes)

    def of_each(self, batch: int) -> Self:
        """The result of a coupled batch, which was one sample, said of each of its samples."""
        names = ("status", "steps", "residual", "event_times", "event_index")
        found = {name: getattr(self, name, None) for name in names}
        return self.amended(
            **{name: value.expand(batch) for name, value in found.items() if value is not None}
        )

    @property
    def failed(self) -> bool:
        """Whether a sample did not converge: one look at the device."""
        return bool(self.status.any())  # CONVERGED is zero

    @property
    def converged(self) -> Tensor:
        """``[batch]`` bool, True where the status is converged."""
        return self.status == Status.CONVERGED

    def summary(self) -> str:
        """One line: how many samples ended how, at what cost, and what there is to say of it."""
        counts = Counter(self.status.tolist())
        parts = [f"{counts[status]} {status.name.lower()}" for status in Status if counts[status]]
        line = (
            f"{len(self.status)} samples: {', '.join(parts) or 'none'}; "
            f"{self.evaluations} evaluations"
        )
        return "; ".join((line, *self._remarks()))

    def _remarks(self) -> Iterator[str]:
        """What a kind of result adds to its summary."""
        yield from ()

    def raise_if_failed(self) -> Self:
        """Return self when every sample converged.

        Raises:
            SolveError: at least one sample did not; the error carries this result.
        """
        if self.failed:
            raise SolveError(f"the solve failed: {self.summary()}", self)
        return self


@dataclass(frozen=True, kw_only=True)
class Solution(SolveResult):
    """An equilibrium: the best iterate of each sample.

    Attributes:
        z: the best iterate, shaped like z0.
        residual: ``[batch]``, the measured 2-norm of f(z) - z at ``z``.
        iterates: ``[k, batch, ...]``, those that the gradient strategy was asked to keep
            (``Implicit(iterates=...)``, ``Phantom``, ``Neumann``, ``Unrolled``), each with its
            gradient.
        judged: what the stop test measured, where one did.
    """

    residual: Tensor
    iterates: Any = None
    judged: Judged | None = field(default=None, repr=False)

    @property
    def failed(self) -> bool:
        """Whether a sample did not converge; see :attr:`SolveResult.failed`."""
        mark, status = self.judged, self.status
        known = mark is not None and mark.all_met and mark.status is status
        # A status that was written to is looked at.
        return not (known and not status.is_inference() and not status._version) and super().failed

    @property
    def trace(self) -> Tensor | None:
        """``[steps, batch]``, the residual after each step, when asked for."""
        return None if self.judged is None else self.judged.trace

    @property
    def relative_residual(self) -> Tensor | None:
        """``[batch]``, the residual as it was compared with ``tol``.

        ``residual / (scale + atol / tol)``, where the scale is ``|f(z)|``, or in ``find_root`` that
        of g. None where ``tol=0``.
        """
        relative = self.judged and self.judged.relative
        return relative() if callable(relative) else relative

    def _remarks(self) -> Iterator[str]:
        relative = self.relative_residual
        worst = self.residual if relative is None else relative
        if worst.numel():
            kind = "residual" if relative is None else "relative residual"
            yield f"worst {kind} {worst.max().item():.3g}"


@dataclass(frozen=True, kw_only=True)
class _Integrated(SolveResult):
    """What an integration gives.

    Attributes:
        times: the output times, ``[times]``, or ``[batch, times]`` those of each sample.
    """

    times: Tensor

    def _remarks(self) -> Iterator[str]:
        if bool((self.status == Status.MAX_STEPS).any()):
            yield (
                "out of steps before the last time: raise max_steps, or take an implicit "
                "method where the dynamics are stiff"
            )


@dataclass(frozen=True, kw_only=True)
class FinalState(_Integrated):
    """The end of a trajectory: what a layer with an ODE solver gives.

    Attributes:
        z: the state at the last time, shaped like z0.
        times: the times of the trajectory, ``[times]``; z is at ``times[-1]``.
    """


@dataclass(frozen=True, kw_only=True)
class Trajectory(_Integrated):
    """The states of each sample at the output times.

    Attributes:
        z: ``[times, batch, ...]``, ``z[0]`` is z0. A sample that failed keeps its last state at the
            times it did not reach. With ``save`` what was saved in place of each state.
        times: the output times, ``[times]``, or ``[batch, times]`` those of each sample.
        end: with ``save`` the state at which each sample ended, shaped like z0; else None.
        event_times: ``[batch]``, when the first event happened, NaN where none did; None where
            there was none to watch.
        event_index: ``[batch]`` int64, which of the events it was; -1: none.
        event_velocity: ``[batch, n]``, dz/dt there, that of the continuous extension of the step;
            zero: none. A solver gives it to the gradient strategies; None afterwards.
        interpolant: the continuous extension, when asked for; see :meth:`interpolate`.
    """

    end: Any = None
    event_times: Tensor | None = None
    event_index: Tensor | None = None
    event_velocity: Tensor | None = field(default=None, repr=False)
    interpolant: Callable[[Tensor], Any] | None = None

    def interpolate(self, t: Tensor) -> Any:
        """The states at other times, by the continuous extension of the steps.

        ``integrate(..., dense=True)``.

        Arguments:
            t: ``[T]``, or ``[batch, T]`` for times of each sample's own, in any order.

        Returns:
            ``[T, batch, ...]``, differentiable where the trajectory is, and with respect to t; NaN
            where t is later than the time at which a sample ended.

        Raises:
            InputError: t has another shape or is outside of the span; the trajectory has no
                continuous extension.
        """
        return self._dense()(t)

    def at_steps(self) -> tuple[Tensor, Any]:
        """The start and the ends of the steps that each sample accepted.

        ``integrate(..., dense=True)``.

        Returns:
            The times ``[batch, S]`` and the states ``[S, batch, ...]``, differentiable where the
            trajectory is. A sample with fewer steps than another has NaN behind its last.

        Raises:
            InputError: the trajectory has no continuous extension.
        """
        return self._dense().steps()

    def _dense(self) -> Any:
        if self.interpolant is None:
            raise InputError(
                "this trajectory has no values between its times: ask for them, "
                "integrate(..., dense=True)"
            )
        return self.interpolant

    def final(self) -> FinalState:
        """The state at the last time alone, also of a trajectory that saved something else."""
        return FinalState(
            z=pytree.tree_map(lambda z: z[-1], self.z) if self.end is None else self.end,
            start=self.start,
            status=self.status,
            steps=self.steps,
            evaluations=self.evaluations,
            backward=self.backward,
            times=self.times,
        )


class SolveError(ImplicitCoreError, RuntimeError):
    """A solve ended without an answer for at least one sample.

    Arguments:
        message: what failed.
        solution: the result with its status per sample.
    """

    def __init__(self, message: str, solution: SolveResult | None = None) -> None:
        super().__init__(message)
        self.solution = solution
