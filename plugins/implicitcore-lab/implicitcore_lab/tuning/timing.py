"""Times of steps side by side, so that a slow minute of the machine slows all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import torch

from implicitcore_lab.meter import Clock

Work = Callable[[], object]
MILLISECONDS = 20.0
"""A shorter work is called as often as fills it."""


def interleaved(works: Sequence[Work], device: torch.device, repeats: int) -> list[list[float]]:
    """Milliseconds of one call of each work in each of the repetitions, ``[works][repeats]``.

    CPU time of the process, or the time between two events of the CUDA stream. A repetition times
    all of the works, in an order of its own.
    """
    clock = Clock(device)
    calls = [max(1, round(MILLISECONDS / max(_time(clock, work, 1), 1e-3))) for work in works]
    found: list[list[float]] = [[] for _ in works]
    order, shuffle = list(range(len(works))), random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for index in order:
            found[index].append(_time(clock, works[index], calls[index]))
    return found


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over the repetitions of time by time."""
    return statistics.median(
        one / max(other, 1e-9) for one, other in zip(times, others, strict=True)
    )


def _time(clock: Clock, work: Work, calls: int) -> float:
    begin = clock.mark()
    for _ in range(calls):
        work()
    end = clock.mark()
    if isinstance(end, torch.cuda.Event):
        end.synchronize()
    return clock.between(begin, end) / calls
