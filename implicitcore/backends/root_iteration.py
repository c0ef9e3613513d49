"""One iteration of a root solver as data: what a backend may do in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from implicitcore.backends.step_control import StepRule
from implicitcore.solution import Origin


@dataclass(frozen=True)
class PicardRule:
    """(1 - damping) z + damping f(z)."""

    damping: float


@dataclass(frozen=True)
class AndersonRule:
    """As :class:`~implicitcore.Anderson` says.

    Attributes:
        depth: earlier directions kept.
        period: directions after which all are forgotten.
        damping: of the plain step.
        ridge: added to the length of a new direction, in units of the residual.
        plain_rate: from its start on, a sample takes plain steps for as long as each leaves at most
            this share of its residual; 0 where none does.
    """

    depth: int
    period: int
    damping: float
    ridge: float
    plain_rate: float


@dataclass(frozen=True)
class BroydenRule:
    """As the good method of :class:`~implicitcore.Broyden`.

    Attributes:
        memory: updates kept, after which all are forgotten.
    """

    memory: int


@dataclass(frozen=True)
class AdamsFlowRule:
    """A step of :class:`~implicitcore.Adams` along dz/dt = f(z) - z, to where that vanishes.

    An iterate is a point that each sample tries. One that refuses it, by its error, is judged again
    where it was, and tries a shorter step.

    Attributes:
        max_order: highest order.
        rows: differences kept.
        step: who accepts a step, and how long the next is.
        first_step: the size of the first.
        shortest: a sample has stalled that would need a step of fewer units of rounding, those of
            one or of its time, or no shorter than one that it refused; it is not finite where that
            one's error was not.
        patience: a sample has stalled where its least residual in so many iterates is about that in
            as many before; 0 waits.
        fall: about that is more than this share of it,
        rise: and less than so many times it.
    """

    max_order: int
    rows: int
    step: StepRule
    first_step: float
    shortest: float
    patience: int
    fall: float
    rise: float


UpdateRule = PicardRule | AndersonRule | BroydenRule | AdamsFlowRule
"""How the next iterate follows from z, f(z) and those before."""


class StopRule(NamedTuple):
    """When each sample stops: what :class:`~implicitcore.extend.StopTest` decides by.

    Attributes:
        tol: relative tolerance.
        floor: the least that a residual is compared with, a number or ``[batch]``.
        scale: what ``tol`` is relative to: ``"update"`` is ``|f(z)|``, ``"root"`` max(1,
            min(``|g(z0)|``, ``|f(z)|``)); or that itself, ``[batch]``, which stands in for
            ``|f(z)|`` then.
        rounding: of f(z), relative to it, where the residual is its difference with z.
        min_steps: iterates before this one do not meet the tolerance.
        origin: what the solve began with, where another solver did.
        divergence: a residual this many times its scale at the start is lost.
        trust: to this share the residual is to fall where the limit grew.
        growth: a residual this many times that before is one that grew.
    """

    tol: float
    floor: Tensor | float
    scale: Literal["update", "root"] | Tensor
    rounding: float
    min_steps: int
    origin: Origin | None
    divergence: float
    trust: float
    growth: float


class RootResult(NamedTuple):
    """Where each sample is."""

    z: Tensor  # [batch, n], the iterate that met the tolerance, or that of least residual
    residual: Tensor  # [batch], its residual
    limit: Tensor  # [batch], what that was compared with
    relative: Tensor  # [batch], the residual as it is compared with tol: tol times the two's ratio
    status: Tensor  # [batch] int8; MAX_STEPS where a sample has not stopped
    steps: Tensor  # [batch] int64, the evaluations until a sample stopped
    start_norm: Tensor  # [batch], the residual at the start
    ceiling: Tensor  # [batch], above which a residual is lost
    size: Tensor  # [batch], the last residual
    last: Tensor  # [batch, n], the last iterate
    stopped_apart: bool  # a sample stopped while others went on
    all_met: bool = False  # what is known of the status without a look at the device


class RootIteration(Protocol):
    """The iterations of one solve, each in one call; without a graph."""

    def advance(self, z: Tensor, fz: Tensor, g: Tensor | None, last: bool) -> Tensor | None:
        """Take in an iterate: its residual, the stop test, the best iterate, and the update.

        Arguments:
            z: ``[batch, n]``; kept, and not written to.
            fz: f(z), ``[batch, n]``.
            g: the residual, where it is not f(z) - z.
            last: there is no next iterate.

        Returns:
            The next iterate, in which samples that have stopped stay where they were; None where
            all have, or with ``last``.
        """

    def size(self) -> Tensor:
        """``|f(z) - z|`` at the last iterate, ``[batch]``."""
        ...

    def between(self, least: float, most: float) -> bool:
        """Whether ``|f(z)|`` at the last iterate is between these, in each sample."""
        ...

    def result(self) -> RootResult:
        """Where each sample is."""
        ...
