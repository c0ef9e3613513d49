"""The choices of an integration, written down and made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.step_chooser import Attempt, Choice, GridSteps, StepChooser
from implicitcore.system.system import System


class RecordedStep(NamedTuple):
    """The choices of one step."""

    dt: Tensor  # [batch]
    arrives: Tensor  # [batch] bool
    accept: Tensor  # [batch] bool
    lost: Tensor | None = None  # [batch] bool, which gave up; None where none refused it
    end: Tensor | None = None  # [batch], where it is not t + dt


@final
class RecordedSteps(StepChooser):
    """The choices of another chooser, written down.

    Arguments:
        chooser: makes them.

    Attributes:
        record: the steps so far.
    """

    def __init__(self, chooser: StepChooser) -> None:
        self.chooser = chooser
        self.record: list[RecordedStep] = []

    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """See :meth:`StepChooser.first`."""
        return self.chooser.first(system, samples, velocity)

    def choose(self, samples: Samples) -> Attempt:
        """See :meth:`StepChooser.choose`."""
        return self.chooser.choose(samples)

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        choice = self.chooser.decide(system, samples, step, attempt)
        end = attempt.end if isinstance(self.chooser, GridSteps) else None
        self.record.append(RecordedStep(attempt.dt, attempt.arrives, choice.accept, end=end))
        return choice

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`StepChooser.lost`."""
        found = self.chooser.lost(samples, attempt, choice, refused)
        if found is not None:
            self.record[-1] = self.record[-1]._replace(lost=found[0])
        return found


@final
class ReplayedSteps(StepChooser):
    """Choices that were written down, made again.

    Arguments:
        record: the steps.
        index: of the step to begin with.
    """

    def __init__(self, record: Sequence[RecordedStep], index: int) -> None:
        self.record, self.index = record, index

    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """Nothing is estimated: the record has the steps."""
        return samples.size

    def choose(self, samples: Samples) -> Attempt:
        """See :meth:`StepChooser.choose`.

        A step that will be rejected is not taken: what f gives beyond its domain is in no graph.
        """
        step = self.record[self.index]
        end = samples.t + step.dt if step.end is None else step.end
        end = torch.where(step.arrives, samples.ahead.target, end)
        return Attempt(torch.where(step.accept, step.dt, 0), step.arrives, end)

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        accept = self.record[self.index].accept
        self.index += 1
        # What was rejected is not even taken here: its end is finite.
        return Choice(accept, samples.error, samples.size, samples.error)

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`StepChooser.lost`."""
        lost = self.record[self.index - 1].lost
        return None if lost is None else (lost, lost)
