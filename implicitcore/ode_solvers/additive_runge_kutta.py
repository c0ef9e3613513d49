"""Additive Runge-Kutta pairs: a stiff part implicitly, the rest explicitly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.ode_solvers import additive_tableaus as tableaus
from implicitcore.ode_solvers.additive_tableaus import AdditiveTableau
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.implicit_runge_kutta import ImplicitRungeKutta
from implicitcore.ode_solvers.split import Split, split
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.stages import Frame, Stage
from implicitcore.ode_solvers.step_cache import Kept, StepCache, linearized
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.options.shared import ErrorControl
from implicitcore.system.system import System
from implicitcore.tensors.norms import column


class Sum(NamedTuple):
    """What an additive step has beside its equations."""

    whole: System
    parts: Split
    start: tuple[Tensor, Tensor]  # the velocities of the parts before the step
    beside: list[Tensor]  # dt times that of the other part, at each stage


class AdditiveSequence(StageSequence):
    """The stage equations of the stiff part, to whose offsets the other part adds.

    Arguments:
        tableau: the method.
        system: the vector field, given in two.
        parts: the same.
        t: the time before the step, ``[batch]``.
        dt: ``[batch]``.
        start: the velocities of both parts there, each ``[batch, n]``.
        frame: what they share; it has the state.
    """

    tableau: AdditiveTableau

    def __init__(  # noqa: PLR0913 - what a step is
        self,
        tableau: AdditiveTableau,
        system: System,
        parts: Split,
        t: Tensor,
        dt: Tensor,
        start: tuple[Tensor, Tensor],
        frame: Frame,
    ) -> None:
        super().__init__(tableau, parts.stiff, t, dt, start[0], frame)
        self.sum = Sum(system, parts, start, [self._increment(start[1])])

    def started(self, factors: Factors | None = None) -> AdditiveSequence:
        """See :meth:`StageSequence.started`."""
        frame = Frame(self.frame.z, self.frame.weight, factors)
        return AdditiveSequence(
            self.tableau, self.whole, self.sum.parts, self.t, self.dt, self.sum.start, frame
        )

    @property
    def whole(self) -> System:
        """See :meth:`StageSequence.whole`."""
        return self.sum.whole

    @property
    def explicit(self) -> Sequence[Tensor]:
        """See :meth:`StageSequence.explicit`."""
        return self.sum.beside

    @property
    def end(self) -> Tensor:
        """See :meth:`StageSequence.end`: the last stage, and what its explicit row leaves out."""
        combine = self.system.backend.stage_combination
        return combine(self.points[-1][1], self.one, self.sum.beside, self.tableau.last)

    def offset(self) -> Tensor:
        """See :meth:`StageSequence.offset`."""
        row = self.tableau.beside[len(self.increments)]
        return self.system.backend.stage_combination(
            super().offset(), self.one, self.sum.beside, row
        )

    def add(self, stage: Stage, move: Tensor) -> None:
        """See :meth:`StageSequence.add`; one evaluation of the other part."""
        super().add(stage, move)
        self.sum.beside.append(self._increment(self.sum.parts.nonstiff.velocity(*self.points[-1])))

    def back_to(self, stage: int) -> None:
        """See :meth:`StageSequence.back_to`."""
        super().back_to(stage)
        del self.sum.beside[stage + 1 :]

    def error(self) -> Tensor:
        """The estimate of the error of the step."""
        combine, weights = self.system.backend.stage_combination, self.tableau.error
        return combine(self.combined(weights), self.one, self.sum.beside, weights)

    def _increment(self, velocity: Tensor) -> Tensor:
        return velocity * column(self.dt).to(velocity.dtype)


@dataclass(frozen=True, kw_only=True)
class AdditiveRungeKutta(ErrorControl, ImplicitRungeKutta):
    """An adaptive additive pair.

    Y_i = z + dt sum_{j <= i} a_ij s_j + dt sum_{j < i} e_ij n_j, with s_j the stiff part of the
    field at Y_j and n_j the other, and z_next = z + dt sum_i b_i (s_i + n_i).
    """

    tableau: ClassVar[AdditiveTableau]

    @property
    def step_size(self) -> StepSize:
        """Adaptive."""
        return Adaptive.of(self, self.tableau.order)

    def evaluated(self, system: System, t: Tensor, z: Tensor) -> StepCache:
        """See :meth:`ImplicitMethod.evaluated`."""
        parts = split(system)
        if parts is None:
            return super().evaluated(system, t, z)
        found = parts.stiff.velocity(t, z), parts.nonstiff.velocity(t, z)
        return StepCache(found[0] + found[1], parts=found)

    def linearized(self, system: System, t: Tensor, z: Tensor) -> tuple[StepCache, Tensor]:
        """See :meth:`ImplicitMethod.linearized`."""
        parts = split(system)
        if parts is None:
            return super().linearized(system, t, z)
        stiff, jacobian = linearized(parts.stiff, t, z)
        found = stiff, parts.nonstiff.velocity(t, z)
        return StepCache(stiff + found[1], parts=found), jacobian

    def sequence(
        self, system: System, t: Tensor, dt: Tensor, state: StepCache, frame: Frame
    ) -> StageSequence:
        """See :meth:`ImplicitMethod.sequence`."""
        parts = split(system)
        if parts is None or state.parts is None:
            return super().sequence(system, t, dt, state, frame)
        return AdditiveSequence(self.tableau, system, parts, t, dt, state.parts, frame)

    def error(self, sequence: StageSequence, kept: Kept | None) -> Tensor | None:
        """See :meth:`ImplicitMethod.error`."""
        if isinstance(sequence, AdditiveSequence):
            return sequence.error()
        return super().error(sequence, kept)

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: StepCache, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The moves are those of the implicit method for both parts, which have its order.
        """
        if not step.stages:
            return super().piece(system, t, dt, z, state, step)
        combine, one = system.backend.stage_combination, torch.ones_like(dt)
        moved = [
            (t, combine(point, one, step.stages[: len(row)], row))
            for (t, point), row in zip(step.points[1:], self.tableau.surplus[1:], strict=True)
        ]
        step = step._replace(points=[step.points[0], *moved])
        return super().piece(system, t, dt, z, state, step)


@final
@dataclass(frozen=True, kw_only=True)
class KenCarp3(AdditiveRungeKutta):
    """Kennedy and Carpenter's ARK3(2)4L[2]SA, order 3(2), L-stable: three implicit stages.

    For a :class:`SplitField` at loose tolerances; see ``KenCarp4``.

    Reference:
        Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
        equations, Appl. Numer. Math. 44 (2003), p. 139-181, appendix C.
    """

    tableau: ClassVar[AdditiveTableau] = tableaus.ARK324


@final
@dataclass(frozen=True, kw_only=True)
class KenCarp4(AdditiveRungeKutta):
    """Kennedy and Carpenter's ARK4(3)6L[2]SA, order 4(3), L-stable: five implicit stages.

    The stiff part of a :class:`SplitField` is solved for, with its Jacobian alone; the rest is
    evaluated once a stage (again with a graph, and on an accelerator where the iteration of an
    earlier stage goes on) and never linearised. So it pays where the stiff part is cheap or linear
    and the rest is dear (a network), or not smooth enough for Newton's method. Any other field is
    stiff as a whole: then it is ``ESDIRK`` (and ``KenCarp3`` its sibling of order 3), which needs
    fewer steps where the rest is stiff too.

    ``Unrolled`` and ``Checkpointed`` differentiate both parts. ``Adjoint`` is refused: back in time
    the stiff part is unstable.

    Reference:
        Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
        equations, Appl. Numer. Math. 44 (2003), p. 139-181, appendix C.
    """

    tableau: ClassVar[AdditiveTableau] = tableaus.ARK436
