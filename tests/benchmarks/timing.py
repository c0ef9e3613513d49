"""Interleaved timing: what is compared is timed side by side, so that a slow minute of the machine
slows all alike."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from implicitcore.backends.measure import alternate

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]


def interleave(
    works: Mapping[Key, Callable[[], object]],
    repetitions: int,
    *,
    seed: int,
    window: float,
    clock: Clock = time.perf_counter,
) -> dict[Key, float]:
    """Median seconds of one call of each work. A repetition times them all, in an order of its own.

    A work shorter than ``window`` seconds is called as often as fills it: a short pause of the
    machine then moves one sample of many, and not a median. Small differences of single-threaded
    works want ``time.process_time``, which does not run in a pause.
    """
    with _no_collection():
        return alternate(works, repetitions, partial(_seconds, clock), window=window, seed=seed)


def keep_memory(module: str) -> None:
    """Run the module again in a process whose allocator keeps freed memory, as those made for
    training do; glibc alone is told so.

    By itself glibc gives large tensors back to the system after each step, and the page faults of
    taking them again are then a third of what is measured, more for one contender than for another
    by the order of its frees.
    """
    keep = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}
    if sys.platform == "linux" and not keep.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | keep)


def _seconds(clock: Clock, work: Callable[[], object], calls: int) -> float:
    gc.collect()
    _finish()
    elsewhere = getattr(work, "seconds", None)
    if elsewhere:  # by another process's wall clock
        return elsewhere(calls)
    begin = clock()
    for _ in range(calls):
        work()
    _finish()
    return (clock() - begin) / calls


def _finish() -> None:
    """Wait for what is queued on a GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection but the one between two samples, which need not look at what was there
    before."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
