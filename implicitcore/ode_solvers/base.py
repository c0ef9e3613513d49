"""The abstract ODE solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from implicitcore.norms import column
from implicitcore.ode_solvers.events import Event
from implicitcore.ode_solvers.loop import march
from implicitcore.ode_solvers.step_size import Fixed, StepSize
from implicitcore.options import Options
from implicitcore.solution import Solution
from implicitcore.system import System
from implicitcore.tolerances import Count, Positive

State = TypeVar("State")
Stop = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """One step of every sample, before it is known whether it is accepted."""

    z: Tensor  # [batch, n], the state at t + dt
    error: Tensor | None = None  # [batch, n], an estimate of the local error
    state: Any = None  # what the next step needs at t + dt; None: ask init again
    stages: Sequence[Tensor] = ()  # the velocities that the step is made of, as the system returned them,
    weights: Sequence[float] = ()  # and their weights: z_next = z + dt sum_i weights_i stages_i
    order: Tensor | None = None  # [batch], the power of dt that the error goes with, where each sample has its own


class ODESolver(ABC):
    """Integrates dz/dt = g(t, z, x) for each sample of a batch.

    A black box implements :meth:`solve` alone; a solver that is one map per step derives from :class:`StepwiseODESolver` and gets
    the shared loop.
    """

    kind: ClassVar[str] = "ode_solver"

    @abstractmethod
    def solve(self, system: System, z0: Tensor, times: Tensor, stop: Stop | None = None) -> Solution:
        """Integrate from z0 at times[0].

        Arguments:
            system: gives the vector field on packed states.
            z0: ``[batch, n]``.
            times: output times ``[T]``, strictly increasing or decreasing; the last may be infinite where ``stop`` is given.
            stop: called with t ``[batch]``, z and the velocity ``[batch, n]`` at each accepted state; returns which samples go on.

        Returns:
            The states ``[T, batch, n]``, z[0] = z0, and a status per sample, packed: converged where the last time was reached;
            else the output times that were not reached hold the last accepted state.

        Raises:
            InputError: the times cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class StepwiseODESolver(Options, ODESolver, Generic[State]):
    """An ODE solver that is one map per step: the loop around it is shared by all.

    The loop keeps every promise: each sample has its own time, step size and status, arrives at each output time exactly, and is
    frozen when it is done. A step must treat the samples independently and may be told dt = 0 for those that are done.

    Attributes:
        max_steps: most steps of a sample, rejected ones included, over all output times.
    """

    max_steps: Count = 1000

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

    def piece(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: State, step: Step) -> list[Tensor]:
        """The continuous extension of a step: the coefficients of :func:`~implicitcore.ode_solvers.dense.evaluate`, each ``[batch, n]``.

        By default Hermite's cubic through the states and velocities at both ends: its error goes with dt^4. It is asked for only
        where somebody wants dense output or an event; ``step.state`` is then never None.
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
        """See :meth:`ODESolver.solve`; with the continuous extension where ``dense``, and up to the event of each sample."""
        return march(self, system, z0, times, stop, dense=dense, event=event)


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
