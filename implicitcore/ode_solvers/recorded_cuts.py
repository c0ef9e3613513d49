"""Where steps were cut off at events, written down and cut off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.events import Crossings, Cut, StepCutter
from implicitcore.ode_solvers.recorded_steps import ReplayedSteps


class RecordedCut(NamedTuple):
    """What became of one step."""

    goes_on: Tensor  # [batch] bool, the samples that go on after it
    cut: Cut | None  # None where no event happened in it


@final
class RecordedCuts(StepCutter):
    """The cuts of the events of an integration, written down.

    Arguments:
        crossings: finds them.

    Attributes:
        record: of each step so far.
    """

    def __init__(self, crossings: Crossings) -> None:
        self.crossings = crossings
        self.ended, self.undefined = crossings.ended, crossings.undefined
        self.record: list[RecordedCut] = []

    def found(self) -> dict[str, Tensor]:
        """See :meth:`StepCutter.found`."""
        return self.crossings.found()

    def cut(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """See :meth:`StepCutter.cut`."""
        found = self.crossings.search(start, step, piece, end, accept)
        self.ended, self.undefined = self.crossings.ended, self.crossings.undefined
        self.record.append(RecordedCut(self.goes_on, found))
        return (step, end) if found is None else found.apply(piece, step, end)


@final
class ReplayedCuts(StepCutter):
    """Cuts that were written down, made again: no event is evaluated.

    Arguments:
        record: of each step.
        steps: tells which of them is taken.
    """

    def __init__(self, record: Sequence[RecordedCut], steps: ReplayedSteps) -> None:
        self.record, self.steps = record, steps
        first = record[0].goes_on
        self.ended, self.undefined = torch.zeros_like(first), torch.zeros_like(first)

    def cut(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """See :meth:`StepCutter.cut`."""
        goes_on, found = self.record[self.steps.index - 1]
        self.ended = ~goes_on  # whatever the reason
        return (step, end) if found is None else found.apply(piece, step, end)
