"""The page of the benchmark on equilibria, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import jax_peers
from benchmarks.harness import EXACT, OURS
from benchmarks.markdown import count, error, missed, table
from benchmarks.report import (
    bad,
    compile_table,
    machine_line,
    name_of,
    pieces_table,
    sections,
    tol_of,
)
from benchmarks.root_contenders import COMPACT, COMPILED, CPP, LAYERS, METHODS, SMALLEST, TORCHDEQ
from benchmarks.root_problems import CONV, DESCRIPTIONS, MLP_32, MLP_256
from benchmarks.rows import Row

OVERHEAD = {CONV: (1.08, 1.30, 1.6), MLP_256: (1.5, 2.2, 3.0), MLP_32: (1.8, 3.0, 4.0)}
WITH_CPP = {
    CONV: (1.25, 1.25, 1.4),
    MLP_256: (1.7, 2.2, 2.2),
    MLP_32: (1.8, 2.1, 2.0),
}
FASTER = {"picard": 2.0, "anderson": 2.0, "broyden": 4.0}
SPENT = 1.15
ROUNDING = 1.05
"""A residual that was 1e-6 in float32 may be a little more in float64."""

INTRODUCTION = """\
<!-- Written by `make bench-root` from root.json and tests/benchmarks/root_tried.md:
     edit neither this page nor its numbers. -->

# Root finding and its gradients

```bash
make bench-root
```

One step is a forward solve and the implicit gradient of all parameters and of x, both to the same
relative tolerance, worst sample, float32. Seconds are the median of {repetitions} repetitions; each
times all contenders of a problem, and f itself, in a new order.

- **Floor**: evaluations x time of f + vjps x time of its vjp, as spent: f without a graph, f with
  one, the vjps of the backward solve, and the last vjp, which reaches the parameters. What a step
  takes beyond its floor is the library's own.
- **Evaluations** and **vjps** are counted at f, the same way for every library, in whole batches.
- **Residual**: the worst sample's |f(z) - z| / |f(z)| at the z returned, computed in float64.
- **Gradient error**: the largest relative 2-norm error of the gradient of any parameter or of x,
  against the equilibrium and its adjoint solved in float64 to 1e-13.
- **Peak**: bytes of the tensors alive at the fullest moment of the step, beyond what was there
  before.

TorchDEQ runs with relative tolerances, the same budget of iterations and else its defaults. The
plain loops are what a careful user writes by hand (`tests/benchmarks/plain.py`). The allocator
keeps freed memory, for all alike: without that, page faults are a third of the time on the conv
problem.
"""

AGAINST = """\
Against TorchDEQ, the same method forward and backward; errors are ours, then TorchDEQ's. A
residual in **bold** is above the tolerance. TorchDEQ goes on for an evaluation or two after its
test and returns a residual below the tolerance that it was given; ours is the z whose residual
was measured. So the targets are held against ours *as exact*: asked for the residual that
TorchDEQ reached (2e-7 at least, near the rounding of float32), its backward solve for the largest
tolerance (by factors of two) whose gradient is no further off, or a tenth at most above the least
where the forward error is what remains; and timed beside it. The targets are held against the C++
backend where it is built, as `backend="auto"` takes it."""


STATES = {"picard": 8, "anderson": 20, "broyden": 29}
"""Of a step's peak."""
BELOW, LOOP = 0.9, 1.5
"""Of compiled rows: times the floor, and times a loop written by hand in JAX."""
BY_GRAPH = f"""\
Compiled by `ic.compile`, at most {BELOW:g} x the floor and {LOOP:g} x the loop by hand in JAX, and
nowhere slower than eager. Their counts, memory and floor are those of the eager run."""
JITTED = """\
They solve the adjoint equation by the same solver. The loop by hand stops as the plain loops do.
The tolerances of jaxopt and optimistix are absolute: theirs is the relative one times the norm of
the smallest sample, and each sample is solved by itself, under `vmap`."""

BY_NAME = """\
The layers as `ic.build` makes them, but for the tolerance of the solver: Anderson for `DEQ`, the
flow to the steady state for the others, and the gradient's own solver and tolerance. `SkipRegDEQ`
begins at f(0, x), which is one of its evaluations; untrained, it gains nothing by that. `SkipDEQ`
begins at what a predictor that has learned would give, the equilibrium with each entry off by a
tenth; the predictor itself costs nothing here, and is not trained. *A call of f* is the same ratio
over the number of evaluations and vjps."""


def page(rows: Sequence[Row], about: Mapping[str, Any], tried: str) -> str:
    """The whole page."""
    lines = [INTRODUCTION.format(**about), machine_line(about), ""]
    lines += [
        "## Against the targets",
        "",
        *_overhead(rows, "Overhead (x floor, backward by the same method):", OVERHEAD),
        *_overhead(rows, "The same with the C++ backend:", WITH_CPP, f", {CPP}"),
        *_against_torchdeq(rows),
        *compact(rows, about),
        *_layers(rows),
        *_compiled(rows),
        *memory(rows, about.get("state_bytes", {})),
    ]
    lines += sections(rows, DESCRIPTIONS, {})
    lines += [
        "## Time of f",
        "",
        *pieces_table(about["pieces"]),
        *compile_table(about.get("compile_seconds", {})),
        "## What was tried",
        "",
        tried.strip(),
        "",
    ]
    return "\n".join(lines)


def _overhead(
    rows: Sequence[Row],
    title: str,
    targets: Mapping[str, tuple[float, ...]],
    backend: str = "",
) -> Iterator[str]:
    """Ratios to the floor, forward and backward by the same method."""
    yield from (title, "")
    cells = []
    for problem, limits in targets.items():
        for method, limit in zip(METHODS, limits, strict=True):
            ratios = [
                f"{tol_of(row)}: {row.ratio_to_floor:.2f}, {missed(row.ratio_to_floor, limit)}"
                for row in rows
                if name_of(row) == problem and _is(row, OURS, method, backend)
            ]
            cells.append((problem, method, f"{limit:g}", "; ".join(ratios) or "not measured"))
    yield from table(("problem", "method", "at most", "measured"), cells)


def _layers(rows: Sequence[Row]) -> Iterator[str]:
    """The layers as they are built, beside the first of them with the same backend."""
    yield from (BY_NAME, "")
    cells, first = [], {}
    for row in rows:
        title, _, backend = row.method.partition(", ")
        if row.library == OURS and title in LAYERS.values():
            beside = first.setdefault((row.problem, backend), row)
            spent = count(row.evaluations), count(row.vjps)
            times = row.seconds / beside.seconds
            calls = (beside.evaluations + beside.vjps) / (row.evaluations + row.vjps)
            found = error(row.residual_max), error(row.gradient_error)
            ratios = f"{times:.2f}", f"{times * calls:.2f}"
            cells.append((row.problem, row.method, *spent, *ratios, *found))
    header = ("evaluations", "vjps", "x time of DEQ", "a call of f", "residual", "gradient error")
    yield from table(("problem", "layer", *header), cells)


def memory(rows: Sequence[Row], state_bytes: Mapping[str, int]) -> Iterator[str]:
    """Peaks on conv, in states."""
    yield from (f"Peak memory of a step on {CONV}, in states (the bytes of z):", "")
    cells = []
    for row in rows:
        limit = STATES.get(row.method.partition(", ")[0])
        if name_of(row) == CONV and CONV in state_bytes and limit and _same(row):
            states = row.peak_bytes / state_bytes[CONV]
            held = (
                f"{states:.1f}, {missed(states, limit)}" if row.library == OURS else f"{states:.1f}"
            )
            cells.append((tol_of(row), row.library, row.method, f"{limit}", held))
    header = ("tolerance", "library", "method", "at most", "states")
    yield from table(header, cells) if cells else ("Not measured.", "")


def _compiled(rows: Sequence[Row]) -> Iterator[str]:
    """Ours, compiled and not, beside JAX."""
    yield from (BY_GRAPH, "")
    yield from jax_peers.said(rows, JITTED)
    beside = {(row.problem, row.library, row.method): row for row in rows if _same(row)}
    cells = []
    for (problem, library, method), row in beside.items():
        name, *parts = method.split(", ")
        if library != OURS or COMPILED not in parts:
            continue
        way = ", ".join([name, *(part for part in parts if part != COMPILED)])
        eager = beside.get((problem, OURS, way))
        hand = beside.get((problem, "jax", name))
        if eager:
            loop = (
                f"{row.seconds / hand.seconds:.2f}, {missed(row.seconds / hand.seconds, LOOP)}"
                if hand
                else ""
            )
            floor = f"{row.ratio_to_floor:.2f}, {missed(row.ratio_to_floor, BELOW)}"
            cells.append((problem, way, floor, f"{row.seconds / eager.seconds:.2f}", loop))
    header = ("problem", "method", "x floor", "x time of eager", "x time of JAX's loop by hand")
    yield from table(header, cells) if cells else ("Nothing was compiled.", "")


def _same(row: Row) -> bool:
    """Backward by the forward method."""
    return row.gradient == f"implicit {row.method.partition(', ')[0]}"


def _against_torchdeq(rows: Sequence[Row]) -> Iterator[str]:
    """Speed and errors beside TorchDEQ's same method."""
    yield from (AGAINST, "")
    theirs = {(row.problem, row.method): row for row in rows if row.library == TORCHDEQ}
    if not theirs:
        yield from ("TorchDEQ was not installed.", "")
        return
    exact = {(row.problem, row.method): row for row in rows if row.library == OURS}
    cells = []
    for row in rows:
        other = theirs.get((row.problem, row.method))
        ours = exact.get((row.problem, f"{row.method}, {EXACT}"))
        best = exact.get((row.problem, f"{row.method}, {EXACT}, {CPP}"), ours)
        if other and ours and best and _is(row, OURS, row.method):
            times = (other.seconds / each.seconds for each in (row, ours, best))
            speeds = (*(f"{faster:.1f} x" for faster in times), f"{FASTER[row.method]:g} x")
            residuals, gradients = (
                f"{_residual(best)}, {_residual(other)}",
                f"{error(best.gradient_error)}, {error(other.gradient_error)}",
            )
            cells.append(
                (row.problem, row.method, *speeds, residuals, gradients, _verdict(best, other))
            )
    header = ("faster", "as exact", "as exact, C++", "at least", "residual", "gradient error")
    yield from table(("problem", "method", *header, "target"), cells)


def _verdict(row: Row, other: Row) -> str:
    """Each part that misses, with by how much."""
    parts = {
        "speed": (FASTER[other.method] * row.seconds, other.seconds),
        "residual": (bad(row.residual_max), max(bad(other.residual_max), SMALLEST)),
        "gradient": (bad(row.gradient_error), max(bad(other.gradient_error), SMALLEST)),
    }
    return (
        "; ".join(
            f"{name} missed by {ours / theirs:.3g} x"
            for name, (ours, theirs) in parts.items()
            if ours > theirs
        )
        or "met"
    )


def _residual(row: Row) -> str:
    text = error(row.residual_max)
    return text if bad(row.residual_max) <= ROUNDING * float(tol_of(row)) else f"**{text}**"


def compact(rows: Sequence[Row], about: Mapping[str, Any]) -> Iterator[str]:
    """What ``compact`` spends beside the sum of what each sample needs (one evaluation, with the
    graph, belongs to the gradient)."""
    yield from (
        f"`compact`: forward evaluations spent, per sample, at most {SPENT} x what the "
        "samples need by themselves:",
        "",
    )
    cells = []
    for row in rows:
        method, _, option = row.method.partition(", ")
        if option == COMPACT:
            needed = about["per_sample"][f"{row.problem}, {OURS}, {method}, implicit {method}"]
            ratio = (row.evaluations - 1) / needed
            cells.append(
                (
                    row.problem,
                    method,
                    count(row.evaluations - 1),
                    count(needed),
                    f"{ratio:.2f}, {missed(ratio, SPENT)}",
                )
            )
    yield from (
        table(("problem", "method", "spent", "needed", "ratio"), cells)
        if cells
        else ("Not available yet.", "")
    )


def _is(row: Row, library: str, method: str, backend: str = "") -> bool:
    """The row of a library's method with the same method backward."""
    wanted = library, method + backend, f"implicit {method}"
    return (row.library, row.method, row.gradient) == wanted
