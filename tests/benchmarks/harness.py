"""One problem, all contenders: times, counts, errors, memory, and the floor they are compared with.

The floor of a step is what its evaluations of f and its vector-Jacobian products cost by themselves:
``evaluations x time of f + vjps x time of its vjp``, timed in the same run, between the contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problem import Contender, Problem, Reference
from benchmarks.rows import Row
from benchmarks.timing import interleave
from implicitcore_lab.memory import peak_bytes

PIECE_CALLS = 10
"""Calls of f in one timed piece: they share what a loop pays once, such as entering ``no_grad``."""

PIECES = ("f", "f with graph", "vjp", "vjp to the leaves")


class Counted(nn.Module):
    """f, with its evaluations and the vector-Jacobian products through it counted, in whole batches.

    It needs nothing from the library that calls it: a hook on each value hears of each product. A call on a part of the batch
    counts as that part.
    """

    def __init__(self, f: nn.Module, batch: int) -> None:
        super().__init__()
        self.f, self.batch = f, batch
        self.plain = self.graphs = self.products = 0.0

    def forward(self, *arguments: Any) -> Tensor:
        fz = self.f(*arguments)
        share = len(fz) / self.batch
        if fz.requires_grad:
            self.graphs += share
            fz.register_hook(lambda _: self._product(share))
        else:
            self.plain += share
        return fz

    def _product(self, share: float) -> None:
        self.products += share

    def floor(self, pieces: Mapping[str, float]) -> float:
        """Seconds. The last product is the one that reaches the leaves; the others solve the backward system."""
        spent = self.plain, self.graphs, self.products - 1, 1
        return sum(count * pieces[name] for count, name in zip(spent, PIECES, strict=True))


def pieces(problem: Problem, z: Tensor) -> dict[str, Callable[[], None]]:
    """What the floor is made of, at z; each work makes ``PIECE_CALLS`` calls."""
    point = z.detach().requires_grad_()
    fz = problem.f(point, problem.x)
    f, x, v, leaves = problem.f, problem.x, problem.v, problem.leaves

    def plain() -> None:
        with torch.no_grad():
            for _ in range(PIECE_CALLS):
                f(z, x)

    def graph() -> None:
        for _ in range(PIECE_CALLS):
            f(point, x)

    def vjp(wrt: Sequence[Tensor]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(PIECE_CALLS):
                torch.autograd.grad(fz, wrt, v, retain_graph=True)

        return work

    return dict(zip(PIECES, (plain, graph, vjp([point]), vjp(leaves)), strict=True))


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run."""

    tolerances: tuple[float, ...] = (1e-3, 1e-6)
    repetitions: int = 9
    window: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """The rows of one problem, the seconds of the pieces of its floor, and mean evaluations per sample where known."""

    rows: list[Row]
    pieces: dict[str, float]
    per_sample: dict[str, float]


def measure(problem: Problem, contenders: Sequence[Contender], settings: Settings) -> Measured:
    """Every contender at every tolerance on one problem."""
    reference = Reference.of(problem)
    cases = [(tol, contender) for tol in settings.tolerances for contender in contenders]
    examined = {(tol, str(contender)): _examine(problem, contender, tol, reference) for tol, contender in cases}
    works: dict[Any, Callable[[], object]] = {(tol, str(contender)): contender.prepare(problem, tol) for tol, contender in cases}
    works |= pieces(problem, reference.z.to(problem.z0.dtype))
    seconds = interleave(works, settings.repetitions, seed=settings.seed, window=settings.window)
    floor = {name: seconds[name] / PIECE_CALLS for name in PIECES}
    rows, per_sample = [], {}
    for tol, contender in cases:
        key = (tol, str(contender))
        row, counted, steps = examined[key]
        least = counted.floor(floor)
        rows.append(replace(row, seconds=seconds[key], floor_seconds=least, ratio_to_floor=seconds[key] / least))
        if steps is not None:
            per_sample[f"{row.problem}, {contender}"] = steps.double().mean().item()
    return Measured(rows, floor, per_sample)


def _examine(problem: Problem, contender: Contender, tol: float, reference: Reference) -> tuple[Row, Counted, Tensor | None]:
    """All that is not a time: the counts, the errors and the memory of one step."""
    counted = Counted(problem.f, len(problem.z0))
    outcome = contender.prepare(replace(problem, f=counted), tol)()
    row = Row(
        problem=f"{problem.name}, tol {tol:.0e}".replace("e-0", "e-"),
        library=contender.library,
        method=contender.method,
        gradient=contender.gradient,
        seconds=0.0,
        floor_seconds=0.0,
        ratio_to_floor=0.0,
        evaluations=round(counted.plain + counted.graphs, 3),
        vjps=round(counted.products, 3),
        residual_max=_finite(reference.residual(outcome.z.detach())),
        gradient_error=_finite(reference.gradient_error(outcome.gradients)),
        peak_bytes=peak_bytes(contender.prepare(problem, tol), problem.z0.device),
    )
    return row, counted, outcome.steps


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
