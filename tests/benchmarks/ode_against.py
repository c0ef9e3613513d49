"""Tables of the page on trajectories: ours beside torchdiffeq, and compiled beside eager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness import EXACT, OURS
from benchmarks.markdown import count, error, missed, short, table
from benchmarks.ode_contenders import SEMINORM, TORCHDIFFEQ
from benchmarks.ode_ours import ADJOINT, CHECKPOINTED, COMPILED, METHODS, UNROLLED
from benchmarks.ode_problems import CONV, HETEROGENEOUS, MLP
from benchmarks.report import bad, name_of
from benchmarks.rows import Row

FASTER = {UNROLLED: 1.0, ADJOINT: 1.5}
PAIRS = ((UNROLLED, UNROLLED), (ADJOINT, ADJOINT), (ADJOINT, SEMINORM))
"""Our gradients, and those of torchdiffeq that they are held against."""
TWICE, CLOSE = 2.0, 1e-5
"""What the best of ours is to be faster by, and how exact the gradient beside their adjoint."""
PRECISE = 1e-3
"""The gradient error above which a gradient is taken for another one."""
COLUMNS = ("evaluations", "final state error", "gradient error")

AGAINST = """\
Against torchdiffeq's dopri5 with the same gradient; figures are ours, then torchdiffeq's. *As
exact* is ours at the largest tolerance (by factors of two) whose last state is no further off
than torchdiffeq's at the tolerance of the problem, and timed beside it; its gradient may be."""

BEST = f"""\
The fastest of ours with dopri5 or tsit5, by any backend, compiled or not: *as exact* beside
torchdiffeq backpropagated through, with a gradient error below {error(PRECISE)}; and of the rows
that keep no stages (`checkpointed`) with a gradient error below {error(CLOSE)} at the same
tolerance beside torchdiffeq's adjoint."""


def against_torchdiffeq(rows: Sequence[Row]) -> Iterator[str]:
    """Speed beside the same method and gradient, at the same tolerance and at the same error."""
    yield from (AGAINST, "")
    header = (
        "problem",
        "gradient",
        "ours",
        "faster",
        "at least",
        "target",
        *COLUMNS,
    )
    cells = []
    for problem, gradient, name in (
        (problem, *pair) for problem in (MLP, CONV, HETEROGENEOUS) for pair in PAIRS
    ):
        theirs = find(rows, problem, TORCHDIFFEQ, "dopri5", name)
        for method, label in (("dopri5", "same tolerance"), (f"dopri5, {EXACT}", EXACT)):
            ours = find(rows, problem, OURS, method, gradient)
            if ours and theirs:
                speed, limit = theirs.seconds / ours.seconds, FASTER[gradient]
                cells.append(
                    (
                        problem,
                        name,
                        label,
                        f"{speed:.2f} x",
                        f"{limit:g} x",
                        short(speed, limit),
                        *_compared(ours, theirs),
                    )
                )
    yield from table(header, cells) if cells else ("torchdiffeq was not measured.", "")


def best(rows: Sequence[Row]) -> Iterator[str]:
    """Of all ways that ours has."""
    yield from (BEST, "")
    header = ("problem", "beside", "ours", "faster", "at least", "target", *COLUMNS)
    cells = []
    for problem in (MLP, CONV, HETEROGENEOUS):
        ours = [row for row in rows if name_of(row) == problem and row.library == OURS]
        exact = [row for row in ours if _is_exact(row) and row.gradient == UNROLLED]
        exact = [row for row in exact if bad(row.gradient_error) < PRECISE]
        lean = [row for row in ours if _is_lean(row) and bad(row.gradient_error) < CLOSE]
        for theirs, found in ((UNROLLED, exact), (ADJOINT, lean)):
            other = find(rows, problem, TORCHDIFFEQ, "dopri5", theirs)
            if other is None:
                continue
            if not found:
                cells.append((problem, theirs, "none", "", f"{TWICE:g} x", "missed", "", "", ""))
                continue
            best = min(found, key=lambda row: row.seconds)
            speed = other.seconds / best.seconds
            name = f"{best.method}, {best.gradient}"
            verdict = f"{speed:.2f} x", f"{TWICE:g} x", short(speed, TWICE)
            cells.append((problem, theirs, name, *verdict, *_compared(best, other)))
    yield from table(header, cells) if cells else ("torchdiffeq was not measured.", "")


def _is_exact(row: Row) -> bool:
    return EXACT in row.method.split(", ")


def _is_lean(row: Row) -> bool:
    """Whether it keeps states alone, and is at the tolerance of the problem."""
    method = row.method.split(", ")[0]
    return method in METHODS and row.gradient == CHECKPOINTED and not _is_exact(row)


def compiled(rows: Sequence[Row]) -> Iterator[str]:
    """Ours, compiled and not."""
    yield from ("Compiled by `ic.compile`, forward and backward, nowhere slower than eager:", "")
    eager = {(row.problem, row.method, row.gradient): row for row in rows if row.library == OURS}
    cells = []
    for (problem, method, gradient), row in eager.items():
        parts = method.split(", ")
        way = ", ".join(part for part in parts if part != COMPILED)
        beside = eager.get((problem, way, gradient))
        if COMPILED in parts and beside:
            ratio = row.seconds / beside.seconds
            errors = ", ".join(error(each.gradient_error) for each in (row, beside))
            held = f"{ratio:.2f}, {missed(ratio, 1)}"
            floor = f"{row.ratio_to_floor:.2f}"
            cells.append((problem, way, gradient, floor, errors, held))
    header = (
        "problem",
        "method",
        "gradient",
        "x floor",
        "gradient error, eager's",
        "x time of eager",
    )
    yield from table(header, cells) if cells else ("Nothing was compiled.", "")


def _compared(ours: Row, theirs: Row) -> tuple[str, ...]:
    both = ours, theirs
    return (
        ", ".join(count(row.evaluations) for row in both),
        ", ".join(error(row.residual_max) for row in both),
        ", ".join(error(row.gradient_error) for row in both),
    )


def find(rows: Sequence[Row], problem: str, library: str, method: str, gradient: str) -> Row | None:
    """The row of a problem; None where it was not measured."""
    wanted = (problem, library, method, gradient)
    return next(
        (row for row in rows if (name_of(row), row.library, row.method, row.gradient) == wanted),
        None,
    )
