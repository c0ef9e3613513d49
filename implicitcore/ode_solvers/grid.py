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


class Arrival(NamedTuple):
    """A stop that the steps arrive at."""

    step: int  # how many steps were taken then
    reached: int  # how many output times are reached there
    jumps: bool  # the next step begins at another time, behind a jump of the field


@dataclass(frozen=True, eq=False)
class Grid:
    """When each step begins and ends, the same for all samples.

    Attributes:
        t: where each step begins, ``[steps]``, in the dtype of the times.
        end: where it ends, ``[steps]``: the stop itself where it arrives at one.
        size: dt of each step, with its sign, ``[steps]``.
        arrivals: one for each span that is gone to its end.
    """

    t: Tensor
    end: Tensor
    size: Tensor
    arrivals: list[Arrival]

    @classmethod
    def equal(cls, stops: Stops, longest: float, limit: int) -> Grid:
        """Each span in equal parts no longer than ``longest``, and no more than ``limit`` of them.

        A span that would need more is cut off there, and is the last.
        """
        t: list[float] = []
        end: list[float] = []
        size: list[float] = []
        arrivals: list[Arrival] = []
        start = stops.start.item()
        spans = stops.ends.tolist(), stops.resumes.tolist(), stops.reached.tolist()
        for stop, resume, reached in zip(*spans, strict=True):
            ratio = abs(stop - start) / longest - SLACK
            whole = ratio <= limit
            parts = max(ceil(ratio), 1) if whole else limit
            dt = (stop - start) / parts if whole else copysign(longest, stop - start)
            begins = [start + k * dt for k in range(parts)]
            t += begins
            end += [*begins[1:], stop if whole else start + limit * dt]
            size += [dt] * parts
            if not whole:
                break
            arrivals.append(Arrival(len(t), reached, resume != stop))
            start = resume
        rows = torch.tensor([t, end, size], dtype=stops.ends.dtype, device=stops.ends.device)
        return cls(rows[0], rows[1], rows[2], arrivals)

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
        apart = sorted({0.0, *nodes})
        order = [apart.index(node) for node in (0.0, *nodes)]
        shares = self.t.new_tensor(apart)
        count = 1  # a replay may take one step alone
        while index < len(self):
            t, dt = (times[index : index + count, None] for times in (self.t, self.size))
            index, count = index + count, min(2 * count, BLOCK)
            moments = field.times(torch.addcmul(t, dt, shares).unsqueeze(2).expand(-1, -1, batch))
            for several in zip(*(column.unbind(0) for column in moments.unbind(1)), strict=True):
                yield [several[place] for place in order]

    def stops_before(self, index: int) -> int:
        """How many stops were arrived at in so many steps."""
        return bisect_right(self.arrivals, index, key=lambda arrival: arrival.step)
