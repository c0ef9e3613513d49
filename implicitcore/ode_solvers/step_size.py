"""How steps are chosen, per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.norms import column, norm, rms_norm
from implicitcore.system import System


class Verdict(NamedTuple):
    """Which samples accept the step, and their next step sizes."""

    accept: Tensor  # [batch] bool
    size: Tensor  # [batch], positive; a rejected sample whose size is no smaller than before has failed
    error: Tensor  # [batch], the scaled error that was judged, not finite where the step was not


class StepSize(ABC):
    """Chooses steps; sizes are positive, ``[batch]``, and never in a graph."""

    @abstractmethod
    def first(self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor) -> Tensor:
        """The size of the first step towards an output time ``remaining`` away (with its sign), ``[batch]``."""

    @abstractmethod
    def fit(self, size: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """The step dt (with its sign) towards an output time ``remaining`` away, and whether it arrives there."""

    def settling(self) -> StepSize:
        """The same for an integration that is to end at a steady state."""
        return self

    def with_order(self, order: Tensor) -> StepSize:
        """The same for a step whose error goes with dt^order, ``[batch]``."""
        del order
        return self

    @abstractmethod
    def judge(self, system: System, z: Tensor, z_next: Tensor, error: Tensor | None, size: Tensor, last: Tensor) -> Verdict:
        """Accept or reject a step; ``last`` is the scaled error of the last accepted one."""


@final
@dataclass(frozen=True)
class Fixed(StepSize):
    """Equal steps that arrive at each output time exactly, no longer than ``dt`` (but for a hundredth: t is rounded)."""

    dt: float

    def first(self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor) -> Tensor:
        """Dt."""
        return torch.full_like(t, self.dt)

    def fit(self, size: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """The remaining way in equal parts."""
        parts = (remaining.abs() / self.dt - 1e-2).ceil().clamp(min=1)
        return torch.where(remaining.isinf(), torch.copysign(size, remaining), remaining / parts), parts <= 1

    def judge(self, system: System, z: Tensor, z_next: Tensor, error: Tensor | None, size: Tensor, last: Tensor) -> Verdict:
        """Accept."""
        return Verdict(torch.ones_like(size, dtype=torch.bool), size, last)


@final
@dataclass(frozen=True)
class Adaptive(StepSize):
    """Proportional-integral control of the local error, which is kept below atol + rtol ``|z|`` in the root mean square.

    An error within that tolerance can still be larger than what is left of the way to a steady state, and the residual then never
    falls below the tolerance of the steps. So a settling integration also keeps the error below ``settle`` times the step's own move.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.2; first step: Hairer, Norsett, Wanner,
        Solving Ordinary Differential Equations I (1993), section II.4.
    """

    rtol: float
    atol: float
    order: int | Tensor
    first_step: float | None = None
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    settle: float = torch.inf
    settled: float = 0.3

    def first(self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor) -> Tensor:
        """``first_step``, or an estimate from the velocity's size and change: one evaluation."""
        if self.first_step is not None:
            return torch.full_like(t, self.first_step)
        scale = z.abs().to(t.dtype) * self.rtol + self.atol
        size, speed = rms_norm(z / scale), rms_norm(velocity / scale)
        trial = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).to(t)
        trial = torch.minimum(trial, remaining.abs())  # the field may not be defined beyond the end
        ahead = torch.copysign(trial, remaining)
        bend = rms_norm((system.velocity(t + ahead, z + column(ahead).to(z.dtype) * velocity) - velocity) / scale) / trial
        steepest = torch.maximum(speed, bend)
        better = torch.where(steepest <= 1e-15, (trial * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / self.order))
        return torch.minimum(100 * trial, better.to(t)).nan_to_num(1e-6)

    def settling(self) -> Adaptive:
        """With the error kept below ``settled`` of the move, and a first step of one: accuracy on the way is not what is wanted."""
        return replace(self, settle=self.settled, first_step=self.first_step or 1.0)

    def with_order(self, order: Tensor) -> Adaptive:
        """See :meth:`StepSize.with_order`."""
        return replace(self, order=order)

    def fit(self, size: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """The step, shortened to arrive."""
        arrives = size >= remaining.abs()
        return torch.where(arrives, remaining, torch.copysign(size, remaining)), arrives

    def judge(self, system: System, z: Tensor, z_next: Tensor, error: Tensor | None, size: Tensor, last: Tensor) -> Verdict:
        """Accept an error of at most one."""
        if error is None:
            return Verdict(torch.ones_like(size, dtype=torch.bool), size, last)
        found = system.backend.error_norm(error, z, z_next, self.rtol, self.atol).to(size)
        if self.settle < torch.inf:
            move = norm(z_next - z).clamp(min=torch.finfo(size.dtype).tiny)
            found = torch.maximum(found, norm(error) / (self.settle * move))
        accept = found <= 1
        bounded = found.clamp(min=1e-10)
        after_accepting = self.safety * bounded ** (-0.7 / self.order) * last.clamp(min=1e-4) ** (0.4 / self.order)
        after_rejecting = (self.safety * bounded ** (-1 / self.order)).clamp(max=1)
        factor = torch.where(accept, after_accepting, after_rejecting).clamp(self.shrink, self.grow)
        return Verdict(accept, size * factor.nan_to_num(self.shrink), found)
