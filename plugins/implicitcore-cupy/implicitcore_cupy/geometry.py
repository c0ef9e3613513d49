"""How the threads are laid over a batch of states.

A block works on one span of one sample. The spans depend on n alone, so that a batch does not
change how a sample is added up.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Reasoned from the sizes of NVIDIA's data-centre GPUs, not yet measured on one: up to WHOLE entries
# a second launch, which adds the spans up, would cost more than one block alone on its sample; a
# SPAN is one or two 16-byte loads for each thread of the largest block.
WHOLE, SPAN, MAX_SPANS = 16384, 4096, 1024
WARP, MAX_THREADS = 32, 512


class Geometry(NamedTuple):
    """The launch of a kernel over ``[batch, n]``."""

    span: int  # entries, a multiple of every vector's width where there are several spans
    spans: int
    threads: int


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
    """Threads of a block that has so many items, ``width`` of them to one load.

    A power of two, between a warp and the largest block.
    """
    return min(MAX_THREADS, max(WARP, 1 << (_ceil(items, width) - 1).bit_length()))


def _ceil(items: int, size: int) -> int:
    return -(-items // size)
