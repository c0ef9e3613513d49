"""What implicit Runge-Kutta methods have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.error_scale import allowed
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.newton_step import NewtonStep
from implicitcore.ode_solvers.simplified_newton import Units
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.stages import Frame, attached
from implicitcore.ode_solvers.step_cache import Kept, StepCache, linearized
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.shared import ErrorTolerance
from implicitcore.options.types import Whole
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

# Iterations of a stage in the first step.
GUESS = 2


@dataclass(frozen=True, kw_only=True)
class ImplicitMethod(ErrorTolerance, StepwiseODESolver[StepCache]):
    """An implicit, stiffly accurate Runge-Kutta method: its last stage is the next state.

    Attributes:
        dense_below: largest n whose Jacobians are formed; the storage is n^2 per sample.
    """

    complex_states: ClassVar[bool] = False
    tableau: ClassVar[ImplicitTableau]
    dense_below: Whole = 64

    @property
    @abstractmethod
    def equations(self) -> int:
        """How many systems of equations a step has."""

    @abstractmethod
    def coupling(self, z: Tensor) -> Tensor:
        """A ``[k, k]`` of the stages that are solved together."""

    @abstractmethod
    def sequence(
        self, system: System, t: Tensor, dt: Tensor, state: StepCache, frame: Frame
    ) -> StageSequence:
        """The stage equations of a step."""

    @abstractmethod
    def error(self, sequence: StageSequence, kept: Kept | None) -> Tensor | None:
        """The estimate of the error of a step, where there is one."""

    def solve_stages(self, sequence: StageSequence) -> Tensor:
        """Solve all stages without a matrix; the samples of which that is done, ``[batch]``."""
        raise NotImplementedError

    def init(self, system: System, t: Tensor, z: Tensor) -> StepCache:
        """The velocity and the Jacobian: one evaluation and n products."""
        self.check(z)
        first, jacobian = self.linearized(system, t, z)
        guess = (GUESS,) * self.equations
        kept = Kept.at_start(jacobian, self.coupling(z), guess)
        return first._replace(kept=kept, past=self.no_past(z))

    def evaluated(self, system: System, t: Tensor, z: Tensor) -> StepCache:
        """What a step begins with, but for what is kept: one evaluation."""
        return StepCache(system.velocity(t, z))

    def linearized(self, system: System, t: Tensor, z: Tensor) -> tuple[StepCache, Tensor]:
        """The same with the Jacobian of the equations, without a graph: n products more."""
        velocity, jacobian = linearized(system, t, z)
        return StepCache(velocity), jacobian

    def no_past(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """The ``past`` of a first step."""
        del z
        return None

    def check(self, z: Tensor) -> None:
        """Refuse a state that the method cannot integrate.

        Raises:
            InputError: it is complex.
        """
        if z.is_complex():
            raise InputError(
                f"{type(self).__name__}: expected a real state, received {z.dtype}; give "
                "real and imaginary part as two"
            )

    def velocity(self, state: StepCache) -> Tensor:
        """See :meth:`Stepper.velocity`."""
        return state.velocity

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: StepCache) -> Step:
        """See :meth:`Stepper.step`."""
        with torch.no_grad():
            sequence = self.sequence(system, t, dt, state, self.frame(dt, z, state))
            newton = None if state.kept is None else self._newton(sequence, state.kept)
            solved = self.solve_stages(sequence) if newton is None else newton.solved
            if newton is not None and newton.lost:
                sequence, solved = self.rescued(sequence, newton)
            error = self.error(sequence, newton and newton.kept)
        if torch.is_grad_enabled():
            sequence = self._attached(sequence, z, state)
        z_next = sequence.end  # a stage that is not solved has no value
        if newton is None or newton.lost:
            z_next = torch.where(column(solved), z_next, torch.nan)
        following = newton and self._following(newton, sequence, solved, z_next)
        return Step(
            z_next,
            error,
            following,
            stages=sequence.explicit,
            weights=self.tableau.b,
            points=sequence.points,
        )

    @property
    def looks_ahead(self) -> bool:
        """See :meth:`Stepper.looks_ahead`."""
        return max(self.tableau.c) > 1

    @property
    def piece_needs_state(self) -> bool:
        """Not where the continuous extension is made of the stages."""
        return not self.tableau.dense

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: StepCache, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The method's own continuous extension, where the tableau has one.
        """
        if not self.tableau.dense:
            return super().piece(system, t, dt, z, state, step)
        combine, one = system.backend.stage_combination, torch.ones_like(dt)
        moves = [point - z for _, point in step.points[self.tableau.explicit :]]
        rows = filter(None, self.tableau.dense)
        return [z, step.z - z, *(combine(None, one, moves, row) for row in rows)]

    def frame(self, dt: Tensor, z: Tensor, state: StepCache) -> Frame:
        """What the stages of a step share."""
        del dt, state
        return Frame(z, allowed(z.abs(), self.rtol, self.atol), None)

    def _newton(self, sequence: StageSequence, kept: Kept) -> NewtonStep:
        frame, coupling = sequence.frame, self.coupling(sequence.frame.z)
        units = Units.of(frame.z, frame.weight, len(coupling))
        return NewtonStep(sequence, kept, coupling, units)

    def _attached(self, solved: StageSequence, z: Tensor, state: StepCache) -> StageSequence:
        """The same stages with the gradient of their equations."""
        frame = Frame(z, solved.frame.weight, None)
        sequence = self.sequence(solved.whole, solved.t, solved.dt, state, frame)
        for move in solved.moves:
            stage = sequence.equation()
            sequence.add(stage, attached(stage, move, dense=self._dense(z)))
        return sequence

    def rescued(self, sequence: StageSequence, newton: NewtonStep) -> tuple[StageSequence, Tensor]:
        """The stages where some samples have none, and which have them: those as they are."""
        return sequence, newton.solved

    def _following(
        self, newton: NewtonStep, sequence: StageSequence, solved: Tensor, z: Tensor
    ) -> StepCache:
        """What the next step begins with at z: one evaluation, and n products where any is slow."""
        system, t, kept, slow = sequence.whole, sequence.points[-1][0], newton.after(), newton.slow
        if newton.lost:
            z = torch.where(column(solved), z, sequence.frame.z)
        past = sequence.past_after(solved)
        if slow is None:
            return self.evaluated(system, t, z)._replace(kept=kept, past=past)
        first, jacobian = self.linearized(system, t, z)
        return first._replace(kept=kept.renewed(slow, jacobian), past=past)

    def _dense(self, z: Tensor) -> bool:
        return z.shape[1] <= self.dense_below
