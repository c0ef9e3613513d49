"""What is kept of a trajectory between its output times.

Its continuous extension, and its events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import Pieces, StepStart
from implicitcore.ode_solvers.events import StepCutter
from implicitcore.ode_solvers.stepper import Stepper
from implicitcore.ode_solvers.stops import Stops
from implicitcore.system.system import System
from implicitcore.tensors.norms import all_finite, column


class TrajectoryRecorder:
    """Records the steps of an integration.

    Arguments:
        pieces: keeps the continuous extension.
        cutter: ends samples where their events happen.
    """

    def __init__(self, pieces: Pieces | None = None, cutter: StepCutter | None = None) -> None:
        self.pieces, self.cutter = pieces, cutter

    def record(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """The step and its end, both cut off where an event happens in its ``piece``."""
        if self.cutter is not None:
            step, end = self.cutter.cut(start, step, piece, end, accept)
        if self.pieces is not None:
            self.pieces.add(start, end, piece, accept)
        return step, end

    def found(self, system: System, stops: Stops) -> dict[str, Any]:
        """What it adds to a trajectory."""
        found = {}
        if self.pieces is not None:
            found["interpolant"] = self.pieces.interpolant(system.packing, stops)
        return found if self.cutter is None else found | self.cutter.found()


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
