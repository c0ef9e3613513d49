"""Who decides how long a step is, where it arrives, and which samples accept it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.backends.device_backend import DeviceBackend
from implicitcore.backends.step_control import Look, StepClock, StepRule, StepTaken, looked
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.grid import Grid
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.step_size import StepSize
from implicitcore.ode_solvers.stops import Stops
from implicitcore.system.system import System
from implicitcore.tensors.norms import all_finite

# The rounding of t, of the time between two outputs, from which on dt is rounded to it.
COARSE = 1e-4

# A sample that would need a shorter step has failed: of the span, or of one where that is longer,
# in units of rounding.
SHORTEST = 1e-3

# Nor does a sample go on at the edge of the domain of f: so many of its steps were not finite, one
# in so many of all, and so many times the steps that it may take lead nowhere.
MANY, SHARE, FURTHER = 30, 3, 10


class Attempt(NamedTuple):
    """A step of each sample towards its next stop."""

    dt: Tensor  # [batch], with its sign; zero for a sample that is not active
    arrives: Tensor  # [batch] bool, whether it ends there
    end: Tensor  # [batch], t + dt; the stop itself where it arrives


class Choice(NamedTuple):
    """What becomes of a step of each sample."""

    accept: Tensor  # [batch] bool
    error: Tensor  # [batch], the scaled error, not finite where the step or its end was not
    size: Tensor  # [batch], of the next step
    memory: Tensor  # [..., batch], what the control of the step size remembers
    t: Tensor | None = None  # [batch], where the samples are then, where it is known
    look: Look | None = None  # what the host knows of it


class Journey(NamedTuple):
    """What tells that a sample at the edge of the domain of f will not come to its stop."""

    start: Tensor  # [batch] or none, where samples began
    limit: int  # most steps from stop to stop

    def hopeless(self, samples: Samples, size: Tensor) -> Tensor:
        """Whose steps are undefined again and again, and of which ``size`` is far too short.

        By far more steps than there may be it would come neither to its stop nor as far as it came
        so far: one that begins with short steps goes on.
        """
        often = samples.count.undefined * SHARE >= samples.steps.clamp(min=SHARE * MANY)
        way = torch.minimum(
            (samples.ahead.target - samples.t).abs(), (samples.t - self.start).abs()
        )
        return often & (size * (FURTHER * self.limit) < way)


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

    def look(self, samples: Samples, stops: Stops, attempt: Attempt, choice: Choice) -> Look:
        """What the host is to know of a step."""
        if choice.look is not None:
            return choice.look
        passes = stops.later(attempt.end, samples.ahead.due) if stops.between else None
        return looked(choice.accept, attempt.arrives, passes, samples.active, samples.done)

    @abstractmethod
    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Which of the samples that ``refused`` a step give up, and which of these were not finite.

        None where it is known that none does.
        """


@final
class ControlledSteps(StepChooser):
    """The choices of a step size control.

    Where the times are so far from zero that t has few digits left for dt, dt is what t moves by:
    the sum of the steps would else not be the way that was gone.

    Arguments:
        control: chooses the sizes.
        span: the way to go, and one where it is longer; ``[batch]`` where each has its own.
        coarse: whose dt is to be rounded to what t moves by, a bool; None: nobody's.
        stops: where steps have to end; None where the host may not look at a step.
        journey: where a sample is to end that does not come to its stop, as its steps are not
            finite.
    """

    def __init__(
        self,
        control: StepSize,
        span: Tensor,
        coarse: Tensor | None = None,
        stops: Stops | None = None,
        journey: Journey | None = None,
    ) -> None:
        self.control, self.span, self.coarse, self.stops = control, span, coarse, stops
        self.journey = journey
        self.eps, self.rule = torch.finfo(span.dtype).eps, control.rule
        # The next step, where a backend found it: of which t, size and target, and an attempt.
        self.known: tuple[Tensor, ...] | None = None

    @classmethod
    def between(cls, control: StepSize, stops: Stops, limit: int | None = None) -> ControlledSteps:
        """The choices of steps that have to end at these stops."""
        times = torch.cat((stops.start, stops.ends))
        span, eps = (times[-1] - times[0]).abs().clamp(max=1), torch.finfo(times.dtype).eps
        journey = None if limit is None else Journey(stops.start[0], limit)
        coarse = eps * times.abs().amax(0) > COARSE * times.diff(dim=0).abs().amin(0)
        return cls(control, span, coarse if bool(coarse.any()) else None, stops, journey)

    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """See :meth:`StepChooser.first`."""
        remaining = samples.ahead.target - samples.t
        return self.control.first(system, samples.t, samples.z, velocity, remaining)

    def choose(self, samples: Samples) -> Attempt:
        """See :meth:`StepChooser.choose`."""
        t, target, size = samples.t, samples.ahead.target, samples.size
        known = self.known
        if known is not None and known[0] is t and known[1] is size and known[2] is target:
            return Attempt(self._of_active(samples, known[3]), known[5], known[4])
        if self.coarse is not None:
            size = self._where_coarse(torch.maximum(size, self.eps * t.abs()), size)
        forward = self.stops is not None and self.stops.forward is True
        dt, arrives = self.control.fit(size, target - t, forward=forward)
        end = torch.where(arrives, target, t + dt)
        if self.coarse is not None:
            dt = self._where_coarse(end - t, dt)
            arrives = self._where_coarse(end == target, arrives)
        return Attempt(self._of_active(samples, dt), arrives, end)

    @staticmethod
    def _of_active(samples: Samples, dt: Tensor) -> Tensor:
        return dt if samples.whole else torch.where(samples.active, dt, 0)

    def _where_coarse(self, rounded: Tensor, exact: Tensor) -> Tensor:
        """The rounded ones; of samples with times of their own, where those are coarse."""
        if self.coarse is None or not self.coarse.ndim:
            return rounded
        if exact.dtype == torch.bool:  # of which ONNX runtimes have no choice
            return (rounded & self.coarse) | (exact & ~self.coarse)
        return torch.where(self.coarse, rounded, exact)

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        known = self._taken(samples, step, attempt)
        if known is None:
            return self.judge(system, samples, step, attempt)
        found = system.backend.step_control(*known)
        self.known = found.ahead and (found.t, found.size, samples.ahead.target, *found.ahead)
        return Choice(found.accept, found.error, found.size, found.memory, found.t, found.look)

    def recorded(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """What :meth:`decide` finds, without a look of the host: in a CUDA graph."""
        backend, known = system.backend, self._taken(samples, step, attempt)
        if known is None or not isinstance(backend, DeviceBackend):
            return self.judge(system, samples, step, attempt)
        return Choice(*backend.judge_step(*known))

    def _taken(
        self, samples: Samples, step: Step, attempt: Attempt
    ) -> tuple[StepRule, StepTaken] | None:
        """A step as a backend is told of it; None where it is judged without one."""
        rule, stops, error = self.rule, self.stops, step.error
        if rule is None or stops is None or error is None:
            return None
        ahead, (dt, arrives, end) = samples.ahead, attempt
        target = None if self.coarse is not None else ahead.target
        due = ahead.due if stops.between else None
        order = rule.order if step.order is None else step.order
        clock = StepClock(samples.t, dt, end, arrives, target, due, stops.forward)
        who = samples.active, samples.done, samples.whole
        found = samples.error
        return rule, StepTaken(samples.z, step.z, error, order, found, clock, *who, step.scaled)

    def judge(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """The same without a look of the host."""
        control = self.control if step.order is None else self.control.with_order(step.order)
        size = attempt.dt.abs()
        found = control.accept(system, samples.z, step.z, step.error, size, samples.error)
        accept, error = _where_finite(step.z, found.accept & samples.active, found.error)
        memory = self.control.remember(accept, found.error, samples.error)
        return Choice(accept, error, found.size, memory)

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Those for which no smaller step is left to try."""
        size = attempt.dt.abs()
        floor = (SHORTEST * self.eps * self.span).clamp(min=self.control.min_step)
        smallest = torch.maximum(self.eps * samples.t.abs(), floor)
        lost = refused & ((choice.size >= size) | (choice.size < smallest))
        wrong = refused & ~choice.error.isfinite()
        if self.journey is not None:
            samples.count = samples.count._replace(undefined=samples.count.undefined + wrong)
            lost = lost | (wrong & self.journey.hopeless(samples, choice.size))
        return lost, lost & wrong


@final
class GridSteps(StepChooser):
    """The steps of a grid, which every sample takes: one that is not finite has failed.

    Arguments:
        grid: the steps.
        index: of the step to begin with.
    """

    def __init__(self, grid: Grid, index: int = 0) -> None:
        self.grid, self.index = grid, index

    def first(self, system: System, samples: Samples, velocity: Tensor) -> Tensor:
        """See :meth:`StepChooser.first`."""
        return self._size().abs().expand_as(samples.t)

    def choose(self, samples: Samples) -> Attempt:
        """See :meth:`StepChooser.choose`."""
        end = self.grid.end[self.index].expand_as(samples.t)
        dt = torch.where(samples.active, self._size(), 0)
        return Attempt(dt, end == samples.ahead.target, end)

    def decide(self, system: System, samples: Samples, step: Step, attempt: Attempt) -> Choice:
        """See :meth:`StepChooser.decide`."""
        self.index += 1
        accept, error = _where_finite(step.z, samples.active, samples.error)
        return Choice(accept, error, attempt.dt.abs(), samples.error)

    def lost(
        self, samples: Samples, attempt: Attempt, choice: Choice, refused: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All of them: there is no other step to try."""
        return refused, refused

    def _size(self) -> Tensor:
        return self.grid.size[self.index]


def _where_finite(z: Tensor, accept: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Nobody accepts a z ``[batch, n]`` that is not finite, and its error is a NaN."""
    finite = all_finite(z)
    return accept & finite, torch.where(finite, error, torch.nan)


def choose_steps(control: StepSize, stops: Stops, limit: int) -> ControlledSteps | GridSteps:
    """Who chooses the steps for a control of their size, at most so many from stop to stop."""
    grid = control.grid(stops, limit)
    return ControlledSteps.between(control, stops, limit) if grid is None else GridSteps(grid)
