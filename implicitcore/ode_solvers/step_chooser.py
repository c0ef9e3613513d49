"""Who decides how long a step is, where it arrives, and which samples accept it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.step_size import StepSize
from implicitcore.system.system import System
from implicitcore.tensors.norms import all_finite


class Attempt(NamedTuple):
    """A step of each sample towards its next output time."""

    dt: Tensor  # [batch], with its sign; zero for a sample that is not active
    arrives: Tensor  # [batch] bool, whether it ends there


class Choice(NamedTuple):
    """What becomes of a step of each sample."""

    accept: Tensor  # [batch] bool
    finite: Tensor  # [batch] bool, whether its end is
    size: Tensor  # [batch], of the next step
    error: Tensor  # [batch], the scaled error, not finite where the step was not
    memory: Tensor  # [..., batch], what the control of the step size remembers


class StepChooser(ABC):
    """Makes the choices of an integration."""

    @abstractmethod
    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """The sizes of the first steps, ``[batch]``."""

    @abstractmethod
    def choose(self, samples: Samples) -> Attempt:
        """The next step."""

    @abstractmethod
    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """Accept or reject a step; no sample accepts that is not active or not finite."""

    @abstractmethod
    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Which of the samples that ``refused`` a step give up, and which of these were not finite.

        None where it is known that none does.
        """


@final
class ControlledSteps(StepChooser):
    """The choices of a step size control."""

    def __init__(self, control: StepSize) -> None:
        self.control = control

    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """See :meth:`StepChooser.first`."""
        remaining = samples.target - samples.t
        return self.control.first(system, samples.t, samples.z, velocity, remaining)

    def choose(self, samples: Samples) -> Attempt:
        """See :meth:`StepChooser.choose`."""
        dt, arrives = self.control.fit(samples.size, samples.target - samples.t)
        return Attempt(torch.where(samples.active, dt, 0), arrives)

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        control = self.control if step.order is None else self.control.with_order(step.order)
        size = attempt.dt.abs()
        found = control.accept(system, samples.z, step.z, step.error, size, samples.error)
        finite = all_finite(step.z)
        accept = found.accept & finite & samples.active
        memory = self.control.remember(accept, found.error, samples.error)
        return Choice(accept, finite, found.size, found.error, memory)

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Those for which no smaller step is left to try."""
        size = attempt.dt.abs()
        eps = torch.finfo(size.dtype).eps
        smallest = (eps * samples.t.abs()).clamp(min=max(self.control.min_step, 1e-3 * eps))
        lost = refused & ((choice.size >= size) | (choice.size < smallest))
        return lost, lost & ~(choice.finite & choice.error.isfinite())


class RecordedStep(NamedTuple):
    """The choices of one step."""

    attempt: Attempt
    accept: Tensor  # [batch] bool
    lost: Tensor | None = None  # [batch] bool, which gave up; None where none refused it


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
        self.record.append(RecordedStep(attempt, choice.accept))
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
        """See :meth:`StepChooser.choose`."""
        return self.record[self.index].attempt

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        accept = self.record[self.index].accept
        self.index += 1
        return Choice(accept, accept, samples.size, samples.size, samples.error)

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`StepChooser.lost`."""
        lost = self.record[self.index - 1].lost
        return None if lost is None else (lost, lost)
