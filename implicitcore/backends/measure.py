"""Timings of a backend's kernels on a device, for ``implicitcore bench backend``."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend

_Key = TypeVar("_Key", bound=Hashable)
Work = Callable[[], object]
Timer = Callable[[Work, int], float]

DEPTH, STAGES = 8, 6
"""Rows of a history (those of a default Anderson or Broyden), and stages of a step (of Tsit5)."""

COMPILED = "torch.compile"


class Case(NamedTuple):
    """A kernel on tensors of one shape, and the least number of bytes that it reads and writes."""

    run: Callable[[Backend], object]
    bytes: int


@dataclass(frozen=True)
class Measured:
    """One kernel of one backend.

    Attributes:
        kernel: its name.
        backend: the backend's name, or ``torch.compile``.
        batch: samples.
        n: entries of a sample.
        dtype: of the state.
        seconds: of one call, the median over the repetitions.
        gigabytes_per_second: the least bytes read and written, per second; above the bandwidth of
            the memory where the tensors fit a cache.
        faster: the speed-up over eager torch.
    """

    kernel: str
    backend: str
    batch: int
    n: int
    dtype: str
    seconds: float
    gigabytes_per_second: float
    faster: float


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        device: where the kernels run.
        shapes: pairs of batch and n.
        dtypes: of the states.
        repetitions: each times everything, in a random order.
        window: the seconds that the calls of one backend take in one repetition.
        compiled: also measure the torch backend's kernels under ``torch.compile``.
    """

    device: torch.device
    shapes: Sequence[tuple[int, int]]
    dtypes: Sequence[torch.dtype]
    repetitions: int = 9
    window: float = 0.01
    compiled: bool = False


def cases(batch: int, n: int, dtype: torch.dtype, device: torch.device) -> dict[str, Case]:
    """Every kernel on states ``[batch, n]``, and Broyden's step, which consists of two."""
    draw = partial(torch.randn, dtype=dtype, device=device)
    z, fz, error = draw(3, batch, n).unbind()
    stages, history, weights = (
        draw(STAGES, batch, n).unbind(),
        draw(batch, DEPTH, n),
        draw(batch, 1, DEPTH),
    )
    matrix, row, dt = draw(batch, DEPTH, DEPTH), fz.unsqueeze(1), torch.rand(batch, device=device)
    state = batch * n * dtype.itemsize
    buffers = torch.empty_like(z)

    def broyden(backend: Backend) -> Tensor:
        return backend.axpy_history(
            row, torch.bmm(backend.inner_products(history, row), matrix), history
        )

    return {
        "residual": Case(lambda backend: backend.residual(fz, z, buffers), 3 * state),
        "inner_products": Case(
            lambda backend: backend.inner_products(history, row), (DEPTH + 1) * state
        ),
        "axpy_history": Case(
            lambda backend: backend.axpy_history(row, weights, history, -1), (DEPTH + 2) * state
        ),
        "broyden": Case(broyden, (2 * DEPTH + 3) * state),
        "stage_combination": Case(
            lambda backend: backend.stage_combination(z, dt, stages, [0.1] * STAGES),
            (STAGES + 2) * state,
        ),
        "error_norm": Case(lambda backend: backend.error_norm(error, z, fz, 1e-3, 1e-6), 3 * state),
    }


@torch.no_grad()
def measure(backends: Mapping[str, Backend], plan: Plan) -> Iterator[Measured]:
    """Time every kernel of every backend, and of the torch backend."""
    reference = TorchBackend()
    for batch, n in plan.shapes:
        for dtype in plan.dtypes:
            supported = {
                "torch": reference,
                **{name: backend for name, backend in backends.items() if dtype in backend.dtypes},
            }
            for kernel, case in cases(batch, n, dtype, plan.device).items():
                works: dict[str, Work] = {
                    name: partial(case.run, backend) for name, backend in supported.items()
                }
                if plan.compiled:
                    works[COMPILED] = _compiled(case)
                seconds = interleave(works, plan)
                for name, spent in seconds.items():
                    speed = case.bytes / spent / 1e9
                    short = str(dtype).removeprefix("torch.")
                    yield Measured(
                        kernel, name, batch, n, short, spent, speed, seconds["torch"] / spent
                    )


def interleave(works: Mapping[str, Work], plan: Plan) -> dict[str, float]:
    """Median seconds of one call of each work, on the device of the plan."""
    return alternate(works, plan.repetitions, partial(_seconds, plan.device), window=plan.window)


def alternate(
    works: Mapping[_Key, Work], repetitions: int, seconds: Timer, *, window: float, seed: int = 0
) -> dict[_Key, float]:
    """Median seconds of one call of each work.

    Each repetition times all of them, in a random order, so that a slow minute affects all alike.

    Arguments:
        works: what is compared.
        repetitions: of the timings.
        seconds: (work, calls) -> seconds per call of so many calls in a row.
        window: seconds; a shorter work is called as often as fills it.
        seed: of the random orders.
    """
    calls = {key: _calls(work, seconds, window) for key, work in works.items()}
    samples: dict[_Key, list[float]] = {key: [] for key in works}
    order, shuffle = list(works), random.Random(seed).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for key in order:
            samples[key].append(seconds(works[key], calls[key]))
    return {key: statistics.median(found) for key, found in samples.items()}


def _calls(work: Work, seconds: Timer, window: float) -> int:
    """How many calls fill the window, after one that warms up."""
    seconds(work, 1)
    return max(1, math.ceil(window / seconds(work, 1)))


def _seconds(device: torch.device, work: Work, calls: int) -> float:
    """Seconds per call; on CUDA between two events of the stream, without a wait for each call."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - begin) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(calls):
        work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def _compiled(case: Case) -> Work:
    """The torch backend's kernel, compiled for this shape alone."""
    # Otherwise dynamo sees one function with ever new tensors, and stops compiling after eight.
    torch.compiler.reset()
    work: Any = torch.compile(lambda: case.run(TorchBackend()), dynamic=False)
    return work
