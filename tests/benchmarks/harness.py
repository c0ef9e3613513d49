"""One problem, all contenders: times, counts, errors, memory, and the floor they are compared with.

The pieces of the floor are timed in the same run, between the contenders.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.counting import (
    ALL,
    GRAPH,
    LEAVES,
    VJP,
    Counted,
    F,
    Spent,
    evaluations,
    floor,
    products,
)
from benchmarks.problem import Contender, Outcome, Problem, Reference
from benchmarks.rows import Row
from benchmarks.timing import interleave
from implicitcore import ConvergenceWarning
from implicitcore_lab.memory import peak_bytes

OURS, EXACT = "implicitcore", "as exact"

PIECE_CALLS = 10
"""Calls of f in one timed piece: they share what a loop pays once, such as entering ``no_grad``."""


def pieces(problem: Problem, z: Tensor) -> dict[str, Callable[[], None]]:
    """What the floor is made of, at z; each work makes ``PIECE_CALLS`` calls."""
    point = z.detach().requires_grad_()
    fz = problem.f(point, problem.x)
    f, x, v, leaves = problem.f, problem.x, problem.v, problem.inputs

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

    return {
        F: plain,
        GRAPH: graph,
        VJP: vjp([point]),
        LEAVES: vjp(leaves),
        ALL: vjp([point, *leaves]),
    }


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run."""

    repetitions: int = 9
    window: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """The rows of one problem, and beside them what the page needs.

    Attributes:
        pieces: seconds of the pieces of the floor.
        per_sample: mean evaluations per sample of a row, where known.
        warned: what a row's step warned of.
        left_out: why a row is not there.
        compile_seconds: what it took to compile a row's step.
        state_bytes: of one state of the problem.
    """

    rows: list[Row] = field(default_factory=list)
    pieces: dict[str, float] = field(default_factory=dict)
    per_sample: dict[str, float] = field(default_factory=dict)
    warned: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    state_bytes: dict[str, int] = field(default_factory=dict)


class _Examined(NamedTuple):
    """All of a row that is not a time, and the step that is to be timed."""

    row: Row
    step: Callable[[], Outcome]
    spent: Spent
    needed: Tensor | None
    warned: list[str]


def measure(problem: Problem, contenders: Sequence[Contender], settings: Settings) -> Measured:
    """Every contender at every tolerance on one problem."""
    measured = Measured(state_bytes={problem.name: problem.z0.nbytes})
    reference = problem.reference
    cases = _examine_all(problem, contenders, reference, measured)
    seconds, parts = _times(cases, pieces(problem, reference.z.to(problem.z0.dtype)), settings)
    measured.pieces.update(parts)
    for key, case in cases.items():
        least = floor(case.spent, parts)
        measured.rows.append(
            replace(
                case.row,
                seconds=seconds[key],
                floor_seconds=least,
                ratio_to_floor=seconds[key] / least,
            )
        )
        if case.needed is not None:
            measured.per_sample[key] = case.needed.double().mean().item()
        if case.warned:
            measured.warned[key] = case.warned
        compiled = getattr(case.step, "compile_seconds", None)
        if compiled is not None:
            measured.compile_seconds[key] = compiled
    return measured


def _examine_all(
    problem: Problem, contenders: Sequence[Contender], reference: Reference, measured: Measured
) -> dict[str, _Examined]:
    """By the row's name. Another library that cannot do the step is left out, with the reason; ours
    must."""
    found = {}
    for tol in problem.tolerances:
        for contender in contenders:
            name = f"{problem.name}, tol {tol:.0e}".replace("e-0", "e-")
            key = f"{name}, {contender}"
            try:
                found[key] = _examine(problem, contender, tol, reference, name)
            except Exception as failure:
                if contender.library == OURS:
                    raise
                measured.left_out[key] = (
                    f"{type(failure).__name__}: "
                    f"{str(failure).strip() or 'no message'}".splitlines()[0]
                )
    return found


def _times(
    cases: Mapping[str, _Examined], parts: Mapping[str, Callable[[], None]], settings: Settings
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each case, and of those pieces that their floors are made of."""
    spent = {name for case in cases.values() for name in case.spent}
    parts = {name: work for name, work in parts.items() if name in spent}
    works: dict[Hashable, Callable[[], object]] = {
        ("case", key): case.step for key, case in cases.items()
    }
    works |= {("piece", name): work for name, work in parts.items()}
    seconds = interleave(works, settings.repetitions, seed=settings.seed, window=settings.window)
    return {key: seconds["case", key] for key in cases}, {
        name: seconds["piece", name] / PIECE_CALLS for name in parts
    }


def _examine(
    problem: Problem, contender: Contender, tol: float, reference: Reference, name: str
) -> _Examined:
    """All that is not a time: the counts, the errors and the memory of one step."""
    counted = Counted(problem.f, len(problem.z0))
    prepare = contender.counts or contender.prepare
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        outcome = prepare(replace(problem, f=counted), tol)()
    step = contender.prepare(problem, tol)
    if contender.counts:
        outcome = step()
    spent = contender.spent(counted)
    peak = getattr(step, "peak_bytes", None)
    row = Row(
        problem=name,
        library=contender.library,
        method=contender.method,
        gradient=contender.gradient,
        seconds=0.0,
        floor_seconds=0.0,
        ratio_to_floor=0.0,
        evaluations=round(evaluations(spent), 3),
        vjps=round(products(spent), 3),
        residual_max=_finite(reference.residual(outcome.z.detach())),
        gradient_error=_finite(reference.gradient_error(outcome.gradients)),
        peak_bytes=peak_bytes(prepare(problem, tol), problem.z0.device) if peak is None else peak,
    )
    return _Examined(row, step, spent, outcome.steps, _messages(caught))


def _messages(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    return [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, ConvergenceWarning)
    ]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
