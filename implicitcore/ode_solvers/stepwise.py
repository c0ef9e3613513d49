"""The ODE solvers that are one map per step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from implicitcore.ode_solvers.base import ODESolver, Step, Stop
from implicitcore.ode_solvers.events import Event
from implicitcore.ode_solvers.integration import integrate_loop
from implicitcore.ode_solvers.step_size import Fixed, StepSize
from implicitcore.options.shared import StepLimit
from implicitcore.options.types import Positive
from implicitcore.solution import Solution
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class StepwiseODESolver(StepLimit, ODESolver, Generic[State]):
    """An ODE solver that is one map per step: the loop around it is shared by all.

    The loop keeps every promise: each sample has its own time, step size and status, arrives at
    each output time exactly, and is frozen when it is done. A step must treat the samples
    independently and may be told dt = 0 for those that are done.
    """

    @property
    @abstractmethod
    def step_size(self) -> StepSize:
        """How steps are chosen."""

    @abstractmethod
    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: State) -> Step:
        """One step from t ``[batch]`` to t + dt, for every sample independently."""

    def init(self, system: System, t: Tensor, z: Tensor) -> State:
        """The state before a step from (t, z): by default the velocity there."""
        return system.velocity(t, z)  # pyright: ignore[reportReturnType]

    def velocity(self, state: State) -> Tensor:
        """The velocity that the state holds."""
        return state  # pyright: ignore[reportReturnType]

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: State, step: Step
    ) -> list[Tensor]:
        """The continuous extension of a step.

        The coefficients of :func:`~implicitcore.ode_solvers.dense.evaluate`, each ``[batch, n]``.
        By default Hermite's cubic through the states and velocities at both ends: its error goes
        with dt^4. It is asked for only where somebody wants dense output or an event;
        ``step.state`` is then never None.
        """
        del system, t
        width, move = column(dt).to(z.dtype), step.z - z
        bend = width * self.velocity(state) - move
        return [z, move, bend, move - width * self.velocity(step.state) - bend]

    def solve(  # noqa: PLR0913 - keyword options
        self,
        system: System,
        z0: Tensor,
        times: Tensor,
        stop: Stop | None = None,
        *,
        dense: bool = False,
        event: Event | None = None,
    ) -> Solution:
        """See :meth:`ODESolver.solve`.

        With the continuous extension where ``dense``, and up to the event of each sample.
        """
        return integrate_loop(self, system, z0, times, stop, dense=dense, event=event)


@dataclass(frozen=True, kw_only=True)
class EqualSteps(StepwiseODESolver[State]):
    """Equal steps: each span between output times in equal parts no longer than dt.

    Attributes:
        dt: the longest step, in the units of the times.
    """

    dt: Positive = 0.1

    @property
    def step_size(self) -> StepSize:
        """Fixed."""
        return Fixed(self.dt)
