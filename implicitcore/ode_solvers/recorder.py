"""What is kept of a trajectory between its output times.

Its continuous extension, and its event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.dense import Interpolant, Record, StepStart
from implicitcore.ode_solvers.events import Crossings, Event
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

if TYPE_CHECKING:
    from implicitcore.ode_solvers.base import Step
    from implicitcore.ode_solvers.stepwise import StepwiseODESolver


class TrajectoryRecorder:
    """Follows the steps of an integration.

    Arguments:
        solver: makes the pieces.
        system: the vector field.
        t: the first time, ``[batch]``.
        z: the state there, ``[batch, n]``.
        dense: keep the pieces.
        event: end a sample where this changes its sign.

    Attributes:
        ended: the samples whose event happened, ``[batch]``.
    """

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        solver: StepwiseODESolver[Any],
        system: System,
        t: Tensor,
        z: Tensor,
        *,
        dense: bool,
        event: Event | None,
    ) -> None:
        self.solver, self.system = solver, system
        self.record = Record(t, z) if dense else None
        self.crossings = Crossings(event, system, t, z) if event is not None else None
        self.ended = torch.zeros_like(t, dtype=torch.bool)

    @property
    def undefined(self) -> Tensor:
        """The samples whose event became NaN, ``[batch]``."""
        return (
            torch.zeros_like(self.ended) if self.crossings is None else self.crossings.sign.isnan()
        )

    @property
    def event_times(self) -> Tensor | None:
        """When the event of each sample happened, ``[batch]``."""
        return None if self.crossings is None else self.crossings.times

    def interpolant(self, times: Tensor) -> Interpolant | None:
        """The continuous extension, where it was kept."""
        return None if self.record is None else self.record.interpolant(self.system.packing, times)

    def follow(
        self, begin: StepStart, step: Step, end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """The step to the time ``end`` with the solver's state there, cut off where an event happens in it; and its end then."""
        if step.state is None:
            step = step._replace(state=self.solver.init(self.system, end, step.z))
        piece = self.solver.piece(self.system, *begin, step)
        crossed = None if self.crossings is None else self.crossings.look(end, step.z, accept)
        if self.crossings is not None and crossed is not None:
            at, z = self.crossings.locate(begin, piece, crossed)
            step, end = (
                step._replace(z=torch.where(column(crossed), z, step.z)),
                torch.where(crossed, at, end),
            )
            self.ended = self.ended | crossed
        if self.record is not None:
            self.record.add(begin, end, piece, accept)
        return step, end
