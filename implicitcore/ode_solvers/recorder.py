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
from implicitcore.tensors.norms import column


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


def extended(
    solver: Stepper[Any], system: System, start: StepStart, step: Step, end: Tensor, accept: Tensor
) -> tuple[Step, list[Tensor]]:
    """The continuous extension of a step, which then holds the solver's state at its end.

    Where the extension needs it: that of the samples which did not accept is where they are.
    """
    if step.state is None and solver.piece_needs_state:
        here = torch.where(column(accept), step.z, start.z)
        step = step._replace(state=solver.init(system, end, here))
    return step, solver.piece(system, *start, step)
