"""What a step did, read without making the device wait.

A step's figures stay on the device as one small tensor, which is copied to the host behind the
kernels of the step. On CUDA it is read after the next step has been launched: by then it is there.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from implicitcore import SolveResult, Status
from implicitcore_lab.engine import Engine
from implicitcore_lab.measures import start_distance
from implicitcore_lab.memory import process_peak
from implicitcore_lab.records import Step


def check_finite(loss: float, status: Tensor) -> None:
    """Require a finite loss and finite solves: a solver that fails keeps its last finite iterate.

    Raises:
        FloatingPointError: the loss, or the solve of a sample, is not finite.
    """
    _check(loss, int((status == Status.NON_FINITE).sum()), len(status))


def _check(loss: float, lost: int, samples: int) -> None:
    if lost:
        raise FloatingPointError(f"the solve of {lost} of {samples} samples is not finite")
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")


class Clock:
    """Times in milliseconds: CPU time of the process, or events of the CUDA stream.

    Arguments:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Now."""
        if not self._cuda:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks that have been reached."""
        return begin.elapsed_time(end) if self._cuda else (end - begin) * 1e3


@dataclass
class Meter:
    """Collects the figures of one step over its batches.

    Arguments:
        engine: the processes whose figures are added up.
        stop: whether this process was told to stop.
        due: whether a checkpoint is due.
    """

    engine: Engine
    stop: bool = False
    due: bool = False
    evaluations: int = 0
    backward: int = 0
    batches: list[Tensor] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.clock = Clock(self.engine.device)

    def mark(self) -> None:
        """Before the forward pass, between it and the backward pass, and after that."""
        self.marks.append(self.clock.mark())

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, solution: SolveResult) -> None:
        """Add one batch whose backward pass has been run; empty labels count for nothing."""
        count = len(labels)
        self.evaluations += solution.evaluations
        self.backward += solution.backward.vjps + solution.backward.evaluations
        status = solution.status[:count]
        found = torch.stack(
            [
                loss.detach().double() * count,
                (logits[:count].argmax(1) == labels).sum().double(),
                (status != Status.CONVERGED).sum().double(),
                (status == Status.NON_FINITE).sum().double(),
                start_distance(solution)[:count].sum().double(),
                torch.full((), float(count), dtype=torch.float64, device=labels.device),
            ]
        )
        self.batches.append(found)

    def close(self) -> Reading:
        """End the step, and begin to bring its figures to the host."""
        figures = torch.stack(self.batches).sum(0)
        counts = [self.evaluations, self.backward, int(self.stop), int(self.due)]
        if self.engine.world > 1:
            shared = torch.tensor(counts, dtype=torch.float64, device=figures.device)
            figures = self.engine.total(torch.cat([figures, shared]))
        self.mark()
        self.seconds = time.perf_counter() - self.begin
        host = figures.to("cpu", non_blocking=True)
        return Reading(self, host, counts)


class Reading:
    """The figures of a step on their way to the host.

    Arguments:
        meter: of the step.
        figures: being copied.
        counts: what this process counted itself.
    """

    def __init__(self, meter: Meter, figures: Tensor, counts: list[int]) -> None:
        self._meter, self._figures, self._counts = meter, figures, counts
        self._arrived = meter.clock.mark()

    def read(self) -> tuple[Step, bool, bool]:
        """The step, whether a process was told to stop, and whether a checkpoint is due.

        Raises:
            FloatingPointError: the loss, or the solve of a sample, is not finite.
        """
        meter, world = self._meter, self._meter.engine.world
        if isinstance(self._arrived, torch.cuda.Event):
            self._arrived.synchronize()
        loss, correct, unconverged, lost, moved, samples, *shared = self._figures.tolist()
        evaluations, backward, stop, due = shared or self._counts
        _check(loss / samples, int(lost), int(samples))
        step = Step(
            samples=int(samples),
            loss=loss / samples,
            correct=int(correct),
            evaluations=evaluations / world,
            backward=backward / world,
            unconverged=int(unconverged),
            seconds=meter.seconds,
            forward_ms=self._passes(0),
            backward_ms=self._passes(1),
            step_ms=meter.clock.between(meter.marks[0], meter.marks[-1]),
            start_distance=moved / samples,
            peak_bytes=process_peak(meter.engine.device),
        )
        return step, bool(stop), bool(due)

    def _passes(self, which: int) -> float:
        """Milliseconds of all forward (0) or backward (1) passes: three marks a batch."""
        marks, clock = self._meter.marks, self._meter.clock
        return sum(
            clock.between(marks[index + which], marks[index + which + 1])
            for index in range(0, len(marks) - 1, 3)
        )
