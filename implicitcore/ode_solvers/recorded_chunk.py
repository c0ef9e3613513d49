"""Several adaptive steps without a look of the host, as a CUDA graph does them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.samples import Ahead, Samples, StepCount, chosen
from implicitcore.ode_solvers.step_chooser import Attempt, ControlledSteps
from implicitcore.ode_solvers.stepper import Stepper
from implicitcore.ode_solvers.stops import Stops
from implicitcore.ode_solvers.watched_field import LENGTH
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.watched import CaptureError

FAR = 2 * LENGTH
"""A sample is far from the end where it needs more steps of the present size than these.

The host looks at a chunk when the next is launched, so at one that ends with nobody far from the
end it looks at once: a chunk behind the end costs more than a wait.
"""


class OutputMemory:
    """Where a chunk leaves what the output times need of it.

    Arguments:
        z: ``[batch, n]``.
        t: ``[batch]``.
        stops: the stops of the solve.

    Attributes:
        states: those with which samples arrived at each stop, ``[stops + 1, batch, n]``; the last
            row is that of samples that are done.
        first: the first output time of each arrival, ``[stops + 1, batch]`` int64.
        pieces: of each step, ``[LENGTH, batch, degree + 1, n]``; None before the first, and where
            no output time lies between stops.
        clocks: t and dt of each step, ``[2, LENGTH, batch]``.
        passed: output times that were reached before each step and after it, ``[2, LENGTH, batch]``
            int64.
        counts: samples that are active behind the chunk, those of them that are far from the end,
            and those that passed output times in each step, ``[2 + LENGTH]`` int64.
    """

    def __init__(self, z: Tensor, t: Tensor, stops: Stops) -> None:
        (batch, n), rows = z.shape, len(stops.ends) + 1
        steps = LENGTH if stops.between else 0
        self.states = z.new_zeros(rows, batch, n)
        self.first = t.new_zeros(rows, batch, dtype=torch.int64)
        self.pieces: Tensor | None = None
        self.clocks = t.new_zeros(2, steps, batch)
        self.passed = t.new_zeros(2, steps, batch, dtype=torch.int64)
        self.counts = t.new_zeros(2 + LENGTH, dtype=torch.int64)

    def keep(
        self, place: int, rows: Tensor, clock: Sequence[Tensor], passed: Sequence[Tensor]
    ) -> None:
        """Write down a step's pieces ``[batch, degree + 1, n]``, t and dt, and what it passes."""
        if self.pieces is None:  # before anything is recorded
            self.pieces = rows.new_zeros(LENGTH, *rows.shape)
        self.pieces[place].copy_(rows)
        for kept, new in zip((*self.clocks, *self.passed), (*clock, *passed), strict=True):
            kept[place].copy_(new)
        torch.sum(passed[1] > passed[0], 0, out=self.counts[2 + place])


@dataclass(eq=False)
class RecordedChunk:
    """``LENGTH`` steps of samples that stay where they are: in the memory of ``samples``.

    What a step is to each sample is chosen by masks, so that behind its end a sample goes along
    with steps of zero. As :meth:`Integration.step` and what follows it, where nothing is recorded
    and no field jumps.

    Arguments:
        solver: makes the steps.
        chooser: the choices, with stops that are in memory of their own.
        stops: these.
        samples: read and written.
        outputs: written.
    """

    solver: Stepper[Any]
    chooser: ControlledSteps
    stops: Stops
    samples: Samples
    outputs: OutputMemory

    def run(self, system: System, into: Samples) -> None:
        """The steps, from a shallow copy ``into`` of the samples."""
        for place in range(LENGTH):
            self._step(system, into, place)
        remaining = (self.stops.ends[-1] - into.t).abs()
        far = into.active & (remaining > FAR * into.size)
        torch.sum(torch.stack((into.active, far)), 1, out=self.outputs.counts[:2])

    def _step(self, system: System, samples: Samples, place: int) -> None:
        attempt = self.chooser.choose(samples)
        dt = attempt.dt.to(real_dtype(samples.z))
        step = self.solver.step(system, samples.t, dt, samples.z, samples.state)
        choice = self.chooser.recorded(system, samples, step, attempt)
        samples.take()
        accept, active, before = choice.accept, samples.active, samples.size
        if self.stops.between:
            self._pass(system, samples, step, attempt, accept, place)
        samples.t = torch.where(accept, attempt.end, samples.t)
        samples.error = choice.memory
        samples.size = torch.where(active, choice.size, before)
        lost, undefined = self.chooser.lost(samples, attempt, choice, active & ~accept)
        samples.finite = samples.finite & ~undefined
        samples.moving = samples.moving & ~lost
        samples.active = active & ~lost
        self._keep(system, samples, step, accept, ~active)
        self._arrive(samples, accept & attempt.arrives, before)

    def _pass(  # noqa: PLR0913 - a step and what became of it
        self,
        system: System,
        samples: Samples,
        step: Step,
        attempt: Attempt,
        accept: Tensor,
        place: int,
    ) -> None:
        """Write down the continuous extension, and which output times samples pass by it."""
        if step.state is None and self.solver.piece_needs_state:
            raise CaptureError("its solver evaluates f once more in steps that pass output times")
        came, dt = samples.ahead, torch.where(accept, attempt.dt, 0)
        start = StepStart(samples.t, dt, samples.z, samples.state)
        piece = self.solver.piece(system, *start, step)
        passes = accept & self.stops.later(attempt.end, came.due)
        reached = torch.where(passes, self.stops.passed(attempt.end), came.next)
        samples.ahead = came.passed(reached, self.stops)
        rows, clock, passed = torch.stack(list(piece), 1), (samples.t, dt), (came.next, reached)
        self.outputs.keep(place, rows, clock, passed)

    def _keep(
        self, system: System, samples: Samples, step: Step, accept: Tensor, resting: Tensor
    ) -> None:
        """The end of the step, where it was accepted."""
        follows = accept | samples.done
        samples.z = torch.where(column(follows), step.z, samples.z)
        if step.state is None:
            samples.state = self.solver.init(system, samples.t, samples.z)
        else:
            samples.state = chosen(follows | resting, step.state, samples.state)

    def _arrive(self, samples: Samples, arrived: Tensor, before: Tensor) -> None:
        """Samples ``arrived`` at their next stops."""
        stops, came, outputs, n = self.stops, samples.ahead, self.outputs, samples.z.shape[1]
        last = len(stops.ends) - 1
        row = came.stop.unsqueeze(0)  # of those on their way, too: the last to write has arrived
        outputs.states.scatter_(0, row.unsqueeze(2).expand(-1, -1, n), samples.z.unsqueeze(0))
        outputs.first.scatter_(0, row, came.next.unsqueeze(0))
        samples.ahead = ahead = came.arrived(arrived, samples.steps, stops)
        samples.done = ahead.stop > last
        samples.active = samples.active & ~samples.done
        samples.size = torch.where(arrived, torch.maximum(samples.size, before), samples.size)


def leaves_of(samples: Samples) -> tuple[Any, ...]:
    """All that samples have, as a pytree; of those in memory of a chunk this memory itself."""
    (each, undefined, together), state = samples.count, samples.state
    each = each + together if together else each
    times = samples.t, samples.size, samples.error, *samples.ahead
    who = samples.active, samples.done, samples.finite, samples.moving
    return samples.z, state, times, who, (each, undefined)


def with_leaves(samples: Samples, leaves: tuple[Any, ...]) -> Samples:
    """Samples that have these, as :func:`leaves_of` gave them."""
    z, state, (t, size, error, *ahead), (active, done, finite, moving), steps = leaves
    count = StepCount(*steps)
    ahead = Ahead(*ahead)
    return Samples(t, z, state, size, error, ahead, active, done, finite, moving, count)
