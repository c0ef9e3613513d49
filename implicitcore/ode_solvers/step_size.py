"""How steps are chosen, per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.backends.step_control import StepRule, beside_move, next_size, remembered
from implicitcore.ode_solvers.error_scale import (
    Absolute,
    allowed,
    check_precision,
    measured,
    norm_of,
)
from implicitcore.ode_solvers.grid import Grid
from implicitcore.ode_solvers.stops import Stops
from implicitcore.ode_solvers.times import signed
from implicitcore.options.shared import ErrorControl
from implicitcore.options.types import Controller, ErrorNorm
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype


class StepDecision(NamedTuple):
    """Which samples accept the step, and their next step sizes."""

    accept: Tensor  # [batch] bool
    # [batch], positive; a rejected sample whose size is no smaller than before has failed
    size: Tensor
    error: Tensor  # [batch], the scaled error, not finite where the step was not


_EXPONENTS = {
    "i": (1.0,),
    "pi": (0.7, -0.4),
    "pid": (0.49, -0.34, 0.1),
}


class StepSize(ABC):
    """Chooses steps; sizes are positive, ``[batch]``, and never in a graph.

    Attributes:
        min_step: a sample that would need a shorter step has failed.
    """

    min_step: float = 0.0

    @abstractmethod
    def first(
        self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor
    ) -> Tensor:
        """The size of the first step, ``[batch]``, towards an output time ``remaining`` away.

        ``remaining`` has a sign.
        """

    @abstractmethod
    def fit(self, size: Tensor, remaining: Tensor, forward: bool = False) -> tuple[Tensor, Tensor]:
        """The step dt towards an output time ``remaining`` away, and whether it arrives there.

        Both have a sign; ``forward`` says that it is known not to be negative.
        """

    def steady_state(self) -> StepSize:
        """The same for an integration that is to end at a steady state."""
        return self

    def grid(self, stops: Stops, limit: int) -> Grid | None:
        """The steps, where they are known beforehand: at most so many from stop to stop."""
        del stops, limit
        return None

    def with_order(self, order: Tensor) -> StepSize:
        """The same for a step whose error goes with dt^order, ``[batch]``."""
        del order
        return self

    @property
    def rule(self) -> StepRule | None:
        """:meth:`accept` and :meth:`remember` as data, for a step with an error.

        None where they are functions of their own.
        """
        return None

    @abstractmethod
    def accept(
        self,
        system: System,
        z: Tensor,
        z_next: Tensor,
        error: Tensor | None,
        size: Tensor,
        last: Tensor,
    ) -> StepDecision:
        """Accept or reject a step; ``last`` is what :meth:`remember` kept."""

    def remember(self, accept: Tensor, error: Tensor, last: Tensor) -> Tensor:
        """What the next decision needs of this one.

        By default the scaled error of the last accepted step, at first one.
        """
        return torch.where(accept, error, last)


@final
@dataclass(frozen=True)
class Fixed(StepSize):
    """Equal steps from stop to stop, no longer than ``dt`` and a hundredth of it."""

    dt: float

    def first(
        self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor
    ) -> Tensor:
        """Dt."""
        return torch.full_like(t, self.dt)

    def fit(self, size: Tensor, remaining: Tensor, forward: bool = False) -> tuple[Tensor, Tensor]:
        """The remaining way in equal parts."""
        del forward
        parts = (remaining.abs() / self.dt - 1e-2).ceil().clamp(min=1)
        return torch.where(
            remaining.isinf(), signed(size, remaining), remaining / parts
        ), parts <= 1

    def grid(self, stops: Stops, limit: int) -> Grid | None:
        """See :meth:`StepSize.grid`; None where each sample has its own times."""
        return Grid.equal(stops, self.dt, limit) if stops.times.ndim == 1 else None

    def accept(
        self,
        system: System,
        z: Tensor,
        z_next: Tensor,
        error: Tensor | None,
        size: Tensor,
        last: Tensor,
    ) -> StepDecision:
        """Accept."""
        return StepDecision(torch.ones_like(size, dtype=torch.bool), size, last)


@final
@dataclass(frozen=True)
class Adaptive(StepSize):
    """Control of the local error, which is kept below atol + rtol ``|z|`` in the root mean square.

    With e_n, e_n-1 and e_n-2 the scaled errors of the last accepted steps, which go with dt^order,
    the next step is the last times 0.9 e_n^(-a / order) e_n-1^(-b / order) e_n-2^(-c / order),
    where (a, b, c) is (1, 0, 0) for the integral controller, (0.7, -0.4, 0) for the
    proportional-integral one, and (0.49, -0.34, 0.1) with a derivative term; or what is given.
    After a rejection it is the integral one.

    An error within that tolerance can still be larger than what is left of the way to a steady
    state, and the residual then never falls below the tolerance of the steps. So an integration to
    a steady state also keeps the error below ``move_bound`` times the step's own move.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.2; first step:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.4.
        Soderlind, Digital filters in adaptive time-stepping, ACM Trans. Math. Softw. 29 (2003), p.
        1-26; "pid": Kennedy, Carpenter, Lewis, Low-storage, explicit Runge-Kutta schemes for the
        compressible Navier-Stokes equations, Appl. Numer. Math. 35 (2000), p. 177-219.
    """

    rtol: float
    atol: Absolute
    order: int | Tensor
    first_step: float | None = None
    move_bound: float = torch.inf
    controller: Controller = "pi"
    min_step: float = 0.0
    max_step: float = torch.inf
    steady_bound: float = 0.3
    norm: ErrorNorm | None = None
    safety: ClassVar[float] = 0.9
    shrink: ClassVar[float] = 0.2
    grow: ClassVar[float] = 10.0

    @classmethod
    def of(cls, control: ErrorControl, order: int, *, steady_bound: float = 0.3) -> Adaptive:
        """The choice of steps that a solver's options ask for.

        Arguments:
            control: the solver.
            order: the power of dt that the estimated error of a step goes with.
            steady_bound: the error of a step relative to its own move, at most, in an integration
                that is to end at a steady state.
        """
        return cls(
            control.rtol,
            control.atol,
            order,
            control.first_step,
            controller=control.controller,
            min_step=control.min_step,
            max_step=torch.inf if control.max_step is None else control.max_step,
            steady_bound=steady_bound,
            norm=control.norm,
        )

    def first(
        self, system: System, t: Tensor, z: Tensor, velocity: Tensor, remaining: Tensor
    ) -> Tensor:
        """``first_step``, or an estimate from the velocity's size and change: one evaluation."""
        check_precision(system, z.dtype, self.rtol, self.atol)
        scale = allowed(z.abs().to(real_dtype(z)), self.rtol, self.atol)
        if self.first_step is not None:
            return torch.full_like(t, min(self.first_step, self.max_step))
        size, speed = (norm_of((part / scale).abs(), self.norm) for part in (z, velocity))
        trial = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).to(t)
        trial = torch.minimum(trial, remaining.abs())  # the field may not be defined beyond the end
        ahead = signed(trial, remaining)
        there = system.velocity(t + ahead, z + column(ahead).to(z.dtype) * velocity)
        bend = norm_of(((there - velocity) / scale).abs(), self.norm) / trial
        steepest = torch.maximum(speed, bend)
        better = torch.where(
            steepest <= 1e-15, (trial * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / self.order)
        )
        return (
            torch.minimum(100 * trial, torch.where(bend.isinf(), 1e-3 * trial, better.to(t)))
            .nan_to_num(1e-6)
            .clamp(self.min_step, self.max_step)
        )

    def steady_state(self) -> Adaptive:
        """With the error kept below ``steady_bound`` of the move, and a first step of one.

        Accuracy on the way is not what is wanted.
        """
        return replace(self, move_bound=self.steady_bound, first_step=self.first_step or 1.0)

    def with_order(self, order: Tensor) -> Adaptive:
        """See :meth:`StepSize.with_order`."""
        return replace(self, order=order)

    @property
    def exponents(self) -> tuple[float, ...]:
        """(a, b, c), as far as they are not zero."""
        given = self.controller
        return given if isinstance(given, tuple) else _EXPONENTS[given]

    def remember(self, accept: Tensor, error: Tensor, last: Tensor) -> Tensor:
        """The errors of the last accepted steps, as many as the controller looks at."""
        return remembered(self._rule, accept, error, last)

    def fit(self, size: Tensor, remaining: Tensor, forward: bool = False) -> tuple[Tensor, Tensor]:
        """The step, shortened to arrive."""
        dt = torch.minimum(remaining, size) if forward else remaining.clamp(-size, size)
        return dt, dt == remaining

    @property
    def rule(self) -> StepRule | None:
        """See :meth:`StepSize.rule`."""
        plain = self.norm is None and not isinstance(self.atol, tuple)
        return self._rule if plain else None

    @property
    def _rule(self) -> StepRule:
        return StepRule(*(getattr(self, name) for name in StepRule._fields))

    def accept(
        self,
        system: System,
        z: Tensor,
        z_next: Tensor,
        error: Tensor | None,
        size: Tensor,
        last: Tensor,
    ) -> StepDecision:
        """Accept an error of at most one."""
        if error is None:
            return StepDecision(torch.ones_like(size, dtype=torch.bool), size, last)
        rule, scale = self._rule, (self.rtol, self.atol, self.norm)
        found = measured(error, system.backend, z, z_next, *scale)
        found = beside_move(rule, found, z, z_next, error).to(size)
        accept = found <= 1
        following = next_size(rule, found, size, last, self.order, accept)
        return StepDecision(accept, following, found)
