"""The steps of an integration that are known before it begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.stops import Stops

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
        size: dt in each span between two stops, with its sign, ``[spans]``.
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
        like, starts = stops.ends, torch.cat((stops.start, stops.resumes[:-1])).cpu().double()
        ends = like.cpu().double()
        way = ends - starts
        wanted = (way.abs() / longest - SLACK).ceil().clamp(min=1)
        size, whole = way / wanted, int((wanted <= limit).cumprod(0).sum())
        parts = wanted[: whole + 1].clamp(max=limit).to(torch.int64)
        after = parts.cumsum(0)
        first, last = after - parts, after[:whole] - 1
        span = torch.arange(len(parts)).repeat_interleave(parts)
        end = starts[span] + torch.arange(1, len(span) + 1).sub(first[span]) * size[span]
        end[last] = ends[:whole]
        t = end.roll(1)
        t[first] = starts[: len(parts)]
        jumps = (starts[1:] != ends[:-1]).tolist()
        arrivals = map(Arrival, after[:whole].tolist(), stops.reached.tolist(), [*jumps, False])
        t, end, size = (part.to(like.device, like.dtype) for part in (t, end, size))
        return cls(t, end, size, list(arrivals))

    def __len__(self) -> int:
        """How many steps it has."""
        return len(self.t)

    def begins(self, index: int, batch: int) -> Iterator[Tensor]:
        """When the steps from this one on begin, each ``[batch]``."""
        for first in range(index, len(self), BLOCK):
            yield from self.t[first : first + BLOCK].unsqueeze(1).expand(-1, batch).unbind(0)

    def stops_before(self, index: int) -> int:
        """How many stops were arrived at in so many steps."""
        return bisect_right(self.arrivals, index, key=lambda arrival: arrival.step)
