"""The ODE solvers that are one map per step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from implicitcore.ode_solvers.base import ODESolver, Stop
from implicitcore.ode_solvers.event import Events
from implicitcore.ode_solvers.loop import integrate_loop
from implicitcore.ode_solvers.saved import Save
from implicitcore.ode_solvers.step_size import Fixed, StepSize
from implicitcore.ode_solvers.stepper import State, Stepper
from implicitcore.ode_solvers.stops import StepAt
from implicitcore.options.shared import StepLimit
from implicitcore.options.types import Positive
from implicitcore.solution import Trajectory
from implicitcore.system.system import System


@dataclass(frozen=True, kw_only=True)
class StepwiseODESolver(StepLimit, ODESolver, Stepper[State]):
    """An ODE solver that is one map per step: the loop around it is shared by all.

    Write ``step`` and ``step_size``, and where the state is more than the velocity
    ``init`` and ``velocity``.

    The loop keeps every promise: each sample has its own time, step size and status, arrives at
    the last time exactly, and is frozen when it is done. ``piece`` interpolates at the output times
    between. A step must treat the samples independently and may be told dt = 0 for those that are
    done.
    """

    def solve(  # noqa: PLR0913 - keyword options
        self,
        system: System,
        z0: Tensor,
        times: Tensor,
        stop: Stop | None = None,
        *,
        dense: bool = False,
        event: Events | None = None,
        hit_times: bool = False,
        step_at: StepAt | None = None,
        save: Save | None = None,
    ) -> Trajectory:
        """See :meth:`ODESolver.solve`.

        With the continuous extension where ``dense``, and up to the first event of each sample;
        steps end at each output time where ``hit_times``, and at the jumps of the field,
        ``step_at``. Where there is something to ``save``, z is that, ``[T, batch, m]``.
        """
        return integrate_loop(
            self,
            system,
            z0,
            times,
            stop,
            dense=dense,
            event=event,
            hit_times=hit_times,
            step_at=step_at,
            save=save,
        )


@dataclass(frozen=True, kw_only=True)
class EqualSteps(StepwiseODESolver[State]):
    """Equal steps: the span of the times in equal parts no longer than dt.

    Output times within are interpolated. ``hit_times`` and ``step_at`` end steps, and each span
    between two such times has equal parts of its own.

    Attributes:
        dt: the longest step, in the units of the times.
    """

    dt: Positive = 0.1

    @property
    def step_size(self) -> StepSize:
        """Fixed."""
        return Fixed(self.dt)
