"""The steps of an integration that are known before it begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, copysign
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.stops import Stops
from implicitcore.system.resolved import ResolvedField

# So many times become tensors of the batch at once: one by one they take longer, and a million of
# them take memory.
BLOCK = 256

# The part of a step by which the steps may be longer than they should: t is rounded.
SLACK = 1e-2


# An output time that is no further from the end of a step than so many units of rounding of t, and
# than that part of the step, is reached there: the state itself is the output.
ROUNDING = 4
NEAR = 1e-3


class Visit(NamedTuple):
    """Output times that are reached by a step: at its end, or on the way there."""

    step: int  # how many steps were taken then
    reached: int  # how many output times are reached there
    arrives: bool  # the state at the end of the step is the output; else its piece gives it
    stops: bool = False  # a step has to end there
    jumps: bool = False  # the next step begins at another time, behind a jump of the field


class StageTimes(NamedTuple):
    """When the stages of a method are evaluated."""

    shares: Tensor  # [apart], of a step, each once
    order: list[int]  # which of these each stage has, the first included

    @classmethod
    def of(cls, nodes: tuple[float, ...], like: Tensor) -> StageTimes:
        """Those of a method with these nodes, like the times of steps."""
        apart = sorted({0.0, *nodes})
        return cls(like.new_tensor(apart), [apart.index(node) for node in (0.0, *nodes)])

    def of_steps(self, t: Tensor, dt: Tensor, batch: int, field: ResolvedField) -> Tensor:
        """Those of steps from t ``[steps]``, ``[steps, apart, ...]`` as the field takes a time."""
        found = torch.addcmul(t.unsqueeze(1), dt.unsqueeze(1), self.shares)
        return field.times(found.unsqueeze(2).expand(-1, -1, batch))

    def in_order(self, several: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Those of all stages of a step."""
        return [several[place] for place in self.order]


class _Span(NamedTuple):
    """Equal steps from one stop to the next."""

    start: float
    dt: float
    steps: int
    whole: bool  # the last step ends at the stop
    near: float  # within so much of the end of a step a time is there


@dataclass(frozen=True, eq=False)
class Grid:
    """When each step begins and ends, the same for all samples.

    Attributes:
        t: where each step begins, ``[steps]``, in the dtype of the times.
        end: where it ends, ``[steps]``: the stop or output time itself where it arrives at one.
        size: dt of each step, with its sign, ``[steps]``.
        stops: how many steps were taken at the end of each span that is gone to its end.
        visits: the output times, in the order in which they are reached, and the stops.
    """

    t: Tensor
    end: Tensor
    size: Tensor
    stops: list[int]
    visits: list[Visit]

    @classmethod
    def equal(cls, stops: Stops, longest: float, limit: int) -> Grid:
        """Each span in equal parts no longer than ``longest``, and no more than ``limit`` of them.

        A span that would need more is cut off there, and is the last.
        """
        t: list[float] = []
        end: list[float] = []
        size: list[float] = []
        taken: list[int] = []
        visits: list[Visit] = []
        start, rounding = stops.start.item(), ROUNDING * torch.finfo(stops.ends.dtype).eps
        times = stops.times.tolist() if stops.between else []
        spans = stops.ends.tolist(), stops.resumes.tolist(), stops.reached.tolist()
        before = 1
        for stop, resume, reached in zip(*spans, strict=True):
            ratio = abs(stop - start) / longest - SLACK
            whole = ratio <= limit
            parts = max(ceil(ratio), 1) if whole else limit
            dt = (stop - start) / parts if whole else copysign(longest, stop - start)
            near = min(rounding * max(abs(start), abs(stop)), NEAR * abs(dt))
            begins = [start + k * dt for k in range(parts)]
            ends = [*begins[1:], stop if whole else start + limit * dt]
            span = _Span(start, dt, parts, whole, near)
            for visit, at in _between(span, times[before:reached], before):
                visits.append(visit._replace(step=visit.step + len(t)))
                if visit.arrives:
                    ends[visit.step - 1] = at
                    begins[visit.step : visit.step + 1] = [at][: parts - visit.step]
            t += begins
            end += ends
            size += [dt] * parts
            if not whole:
                break
            taken.append(len(t))
            visits.append(Visit(len(t), reached, True, True, jumps=resume != stop))
            start, before = resume, reached
        rows = torch.tensor([t, end, size], dtype=stops.ends.dtype, device=stops.ends.device)
        return cls(rows[0], rows[1], rows[2], taken, visits)

    def __len__(self) -> int:
        """How many steps it has."""
        return len(self.t)

    def begins(self, index: int, batch: int) -> Iterator[Tensor]:
        """When the steps from this one on begin, each ``[batch]``."""
        for first in range(index, len(self), BLOCK):
            yield from self.t[first : first + BLOCK].unsqueeze(1).expand(-1, batch).unbind(0)

    def moments(
        self, index: int, batch: int, nodes: tuple[float, ...], field: ResolvedField
    ) -> Iterator[Sequence[Tensor]]:
        """When the stages of the steps from this one on are evaluated, as the field takes times."""
        found, count = StageTimes.of(nodes, self.t), 1  # a replay may take one step alone
        order = found.order
        while index < len(self):
            t, dt = (times[index : index + count] for times in (self.t, self.size))
            index, count = index + count, min(2 * count, BLOCK)
            moments = found.of_steps(t, dt, batch, field)
            for several in zip(*(column.unbind(0) for column in moments.unbind(1)), strict=True):
                yield [several[place] for place in order]

    def stops_before(self, index: int) -> int:
        """How many stops were arrived at in so many steps."""
        return bisect_right(self.stops, index)

    def visits_before(self, index: int) -> int:
        """How many visits were made in so many steps."""
        return bisect_right(self.visits, index, key=lambda visit: visit.step)


def _between(span: _Span, times: Sequence[float], first: int) -> Iterator[tuple[Visit, float]]:
    """The visits of output times between two stops, and the last of the times of each.

    Arguments:
        span: the steps; those of the visits are counted from its start.
        times: the output times.
        first: the index of the first of them.
    """
    found: tuple[Visit, float] | None = None
    for reached, time in enumerate(times, first + 1):
        share = (time - span.start) / span.dt
        nearest = round(share)
        arrives = 0 < nearest and abs(share - nearest) * abs(span.dt) <= span.near
        step = nearest if arrives else int(share) + 1
        if step + (arrives and span.whole) > span.steps:
            break  # beyond the last step, or at the stop
        if found is not None and (found[0].step, found[0].arrives) != (step, arrives):
            yield found
        found = Visit(step, reached, arrives), time
    if found is not None:
        yield found
