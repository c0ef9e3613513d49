"""What is kept of a trajectory between its output times.

Its continuous extension, and its event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import Interpolant, Pieces, StepStart
from implicitcore.ode_solvers.events import Crossings, Event
from implicitcore.ode_solvers.stepper import Stepper
from implicitcore.ode_solvers.stops import Stops
from implicitcore.system.system import System
from implicitcore.tensors.norms import all_finite, column


class TrajectoryRecorder:
    """Records the steps of an integration.

    Arguments:
        system: the vector field.
        t: the first time, ``[batch]``.
        z: the state there, ``[batch, n]``.
        dense: keep the pieces.
        event: end a sample where this changes its sign.

    Attributes:
        ended: the samples whose event happened, ``[batch]``.
    """

    def __init__(
        self,
        system: System,
        t: Tensor,
        z: Tensor,
        *,
        dense: bool,
        event: Event | None,
    ) -> None:
        self.system = system
        self.pieces = Pieces(t, z) if dense else None
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

    def interpolant(self, stops: Stops) -> Interpolant | None:
        """The continuous extension, where it was kept."""
        return None if self.pieces is None else self.pieces.interpolant(self.system.packing, stops)

    def record(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """The step and its end, both cut off where an event happens in its ``piece``."""
        if self.crossings is not None:
            crossed = self.crossings.update(end, step.z, accept)
            if crossed is not None:
                at, z = self.crossings.locate(start, piece, crossed)
                step = step._replace(z=torch.where(column(crossed), z, step.z))
                end = torch.where(crossed, at, end)
                self.ended = self.ended | crossed
        if self.pieces is not None:
            self.pieces.add(start, end, piece, accept)
        return step, end


def extended(  # noqa: PLR0913 - a step and what became of it
    solver: Stepper[Any],
    system: System,
    start: StepStart,
    step: Step,
    end: Tensor,
    accept: Tensor | None = None,
    *,
    last: bool = False,
) -> tuple[Step, list[Tensor]]:
    """The continuous extension of a step, which then holds the solver's state at its end.

    Where the extension needs it: that of the samples which did not accept is where they are. None:
    all accepted. After the ``last`` step of a sample no other tells that the field has no value at
    its end: there the extension takes its value at the start, and the state is left to be made.
    """
    if step.state is not None or not solver.piece_needs_state:
        return step, solver.piece(system, *start, step)
    here = step.z if accept is None else torch.where(column(accept), step.z, start.z)
    state = solver.init(system, end, here)
    if last:
        sound = all_finite(solver.velocity(state))
        if not bool(sound.all()):
            here, end = (
                torch.where(column(sound), here, start.z),
                torch.where(sound, end, start.t),
            )
            beside = step._replace(state=solver.init(system, end, here))
            return step, solver.piece(system, *start, beside)
    step = step._replace(state=state)
    return step, solver.piece(system, *start, step)
