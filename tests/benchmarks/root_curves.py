"""What an iteration of a root solver costs, against the size of a sample and of the batch
(``make bench-curves``).

f is tanh(w z + x) by entries, so that memory and calls are all there is to pay; each solve makes
the same number of iterations, forward, without a gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks.curves import COLOURS, Curves, Panel, Picture, Point, Style, Timing
from benchmarks.root_contenders import CPP, METHODS, TORCHDEQ, runs
from benchmarks.timing import keep_memory

ITERATIONS = 20
NEVER = 1e-12
"""A relative tolerance that float32 does not meet."""
BATCH, WIDTH = 1, 128
SIZES = {
    "n": [(BATCH, n) for n in (10, 100, 1_000, 10_000, 100_000, 1_000_000)],
    "batch": [(batch, WIDTH) for batch in (1, 4, 16, 64, 256, 1024, 4096)],
}
QUICK = {"n": [(BATCH, 10), (BATCH, 100)], "batch": [(1, 8), (4, 8)]}
LINES = {"torch": ("-", "o"), CPP: ("--", "s"), TORCHDEQ: (":", "^")}


class Cell(torch.nn.Module):
    """tanh(w z + x) by entries, which counts its evaluations."""

    def __init__(self, batch: int, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.nn.Parameter(0.5 + 0.45 * torch.rand(n, generator=generator))
        self.x = 0.1 * torch.randn(batch, n, generator=generator)
        self.evaluations = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        return torch.tanh(torch.addcmul(x, self.w, z))


def solves(cell: Cell) -> dict[str, Callable[[], object]]:
    """Every solver on it, by the name of its curve."""
    z0 = torch.zeros_like(cell.x)
    found: dict[str, Callable[[], object]] = {}
    for name, method in METHODS.items():
        solver = method(tol=NEVER, max_steps=ITERATIONS)
        for backend in ("torch", CPP):
            if backend == "torch" or runs(backend):
                found[f"{name}, {backend}"] = partial(
                    ic.fixed_point, cell, z0, cell.x, solver=solver, backend=backend
                )
    if find_spec(TORCHDEQ):
        for name in METHODS:
            found[f"{name}, {TORCHDEQ}"] = _torchdeq(name, cell, z0)
    return found


def _torchdeq(name: str, cell: Cell, z0: Tensor) -> Callable[[], object]:
    solver = "fixed_point_iter" if name == "picard" else name
    deq = (
        importlib.import_module(TORCHDEQ)
        .get_deq(f_solver=solver, f_max_iter=ITERATIONS, f_tol=NEVER, f_stop_mode="rel")
        .eval()
    )
    return lambda: deq(lambda z: cell(z, cell.x), z0)


@torch.no_grad()
def sweep(name: str, timing: Timing) -> Iterator[Point]:
    """Microseconds of an iteration, times the floor, and in copies of the state."""
    for batch, n in (QUICK if timing.quick else SIZES)[name]:
        cell = Cell(batch, n)
        spent, works = {}, {}
        for curve, work in solves(cell).items():
            cell.evaluations = 0
            if timing.first(name, curve, work) is not None:
                spent[curve], works[curve] = cell.evaluations, work
        z, other = torch.randn(2, batch, n).unbind()
        parts = {
            "f": lambda cell=cell, z=z: cell(z, cell.x),
            "copy": lambda z=z, other=other: other.copy_(z),
        }
        seconds = timing({**works, **parts})
        for curve, evaluations in spent.items():
            one = seconds[curve] / evaluations
            yield Point(
                name,
                curve,
                n if name == "n" else batch,
                {
                    "microseconds": 1e6 * one,
                    "floor": one / seconds["f"],
                    "copies": one / seconds["copy"],
                    "evaluations": evaluations,
                    "copy_gigabytes": 2e-9 * z.nbytes / seconds["copy"],
                },
            )


def style(curve: str) -> Style:
    """Colour by method, line by whose loop it is."""
    method, _, loop = curve.partition(", ")
    return Style(COLOURS[list(METHODS).index(method)], *LINES[loop])


def panels(y: str, label: str) -> Iterator[Panel]:
    """Against n, and against the batch."""
    yield Panel("n", f"batch {BATCH}", "entries of a sample", label, y)
    yield Panel("batch", f"{WIDTH} entries", "samples", label, y)


PICTURE = Picture(
    [
        *panels("microseconds", "microseconds an iteration"),
        *panels("floor", "x time of f"),
        *panels("copies", "x time of copying the state"),
    ],
    2,
    style,
)
CURVES = Curves(
    "root_curves",
    __doc__,
    {name: partial(sweep, name) for name in SIZES},
    PICTURE,
    ("implicitcore", "torch", TORCHDEQ),
)
main = CURVES.main

if __name__ == "__main__":
    keep_memory("benchmarks.root_curves")
    main()
