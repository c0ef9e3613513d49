"""How the threads are laid over a batch of states.

A team of threads works on one span of one sample. Both depend on n alone, so that a batch does not
change how a sample is added up. A team of more than a warp is a block; smaller ones share a block,
so that many samples of few entries are no more blocks than they have work for.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Reasoned from the sizes of NVIDIA's data-centre GPUs, not yet measured on one: up to WHOLE entries
# a second launch, which adds the spans up, would cost more than one block alone on its sample; a
# SPAN is one or two 16-byte loads for each thread of the largest block; a block of SHARED threads
# hides the latency of memory, and leaves a small batch to several of the GPU's processors.
WHOLE, SPAN, MAX_SPANS = 16384, 4096, 1024
WARP, MAX_THREADS, SHARED = 32, 512, 128


class Geometry(NamedTuple):
    """The launch of a kernel over ``[batch, n]``."""

    span: int  # entries, a multiple of every vector's width where there are several spans
    spans: int
    lanes: int  # threads of a team, a power of two

    def threads(self, batch: int) -> int:
        """Threads of a block."""
        if self.lanes > WARP:
            return self.lanes
        return min(SHARED, max(WARP, _power_of_two(batch * self.lanes)))

    def grid(self, batch: int) -> tuple[int, int]:
        """Blocks, along the batch and along the spans."""
        return _ceil(batch * self.lanes, self.threads(batch)), self.spans

    def shared(self, sums: int, itemsize: int) -> int:
        """Bytes of shared memory for so many sums at once."""
        return sums * self.lanes // WARP * itemsize if self.lanes > WARP else 0


@functools.lru_cache(maxsize=1024)
def geometry(n: int, dtype: torch.dtype, *, sums: bool) -> Geometry:
    """The launch over samples of n entries.

    Arguments:
        n: entries of a sample.
        dtype: that of the state.
        sums: the kernel sums over the samples, so several spans need a second launch.
    """
    span = n if sums and n <= WHOLE else SPAN * _ceil(n, SPAN * MAX_SPANS)
    return Geometry(span, _ceil(n, span), threads_for(min(n, span), 16 // dtype.itemsize))


def threads_for(items: int, width: int = 1) -> int:
    """Threads for so many items, ``width`` of them to one load: a power of two."""
    return min(MAX_THREADS, _power_of_two(_ceil(items, width)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _ceil(items: int, size: int) -> int:
    return -(-items // size)
