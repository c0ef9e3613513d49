"""The page of the benchmark on trajectories, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import jax_peers
from benchmarks.harness import OURS
from benchmarks.markdown import count, error, missed, short, table
from benchmarks.ode_against import PRECISE, against_torchdiffeq, best, compiled, find
from benchmarks.ode_contenders import TORCHDIFFEQ
from benchmarks.ode_ours import (
    ADJOINT,
    CHECKPOINTED,
    IMPLICIT,
    METHODS,
    UNROLLED,
    WAYS,
    settling,
)
from benchmarks.ode_problems import (
    CONV,
    DESCRIPTIONS,
    HETEROGENEOUS,
    HORIZON,
    MLP,
    STEADY,
    Trajectory,
)
from benchmarks.report import bad, compile_table, machine_line, name_of, pieces_table, sections
from benchmarks.rows import Row

OVERHEAD = (
    (CONV, UNROLLED, 1.25),
    (MLP, UNROLLED, 1.5),
    (CONV, ADJOINT, 1.4),
    (MLP, ADJOINT, 1.4),
    (HETEROGENEOUS, ADJOINT, 1.4),
)
EVALUATIONS = {"adams": 25, "tsit5": 60}
SETTLES = 8.0

INTRODUCTION = """\
<!-- Written by `make bench-ode` from ode.json and tests/benchmarks/ode_tried.md:
     edit neither this page nor its numbers. -->

# Trajectories, their gradients and steady states

```bash
make bench-ode
```

One step is an integration and the gradient of all parameters and of z0, from a random cotangent at
the last time, float32, at the same relative and absolute tolerance; or an equilibrium and the
gradient of all parameters and of x. Seconds are the median of {repetitions} repetitions; each times
all contenders of a problem, and f itself, in a new order.

- **Floor** of a trajectory: evaluations without a graph x time of f + evaluations with one x time
  of f with a graph + differentiated evaluations x time of one vjp to z and the parameters. Who
  takes two products of the same evaluation, one for the state and one for the parameters, as our
  adjoint does, is granted one. The floor of an implicit gradient is that of the page on root
  finding. What a step takes beyond its floor is the library's own.
- **Evaluations** and **vjps** (for a trajectory: differentiated evaluations) are counted at f,
  forward and backward, the same way for every library, in whole batches: an evaluation of the batch
  counts for all of its samples. Compiled code shows neither evaluations nor memory; its counts and
  its peak are those of the eager run of the same solver, its floor the eager one.
- **cpp** is the C++ backend, **compiled** the layer of `ic.compile`, forward and backward. A
  compiled trajectory of large states keeps of each step what the gradient has it keep: `Unrolled`
  what its products need, `Checkpointed` the state, and the step is taken again on the way back. It
  has no row with cpp, for its steps are in the graph already. `euler` and `rk4` take 200 and 50
  equal steps.
- **Final state error**: the worst sample's error of the last state, relative to that state, in the
  2-norm. (In the rows of `ode.json` it is `residual_max`.) At a steady state **residual** is the
  worst sample's |f(z) - z| / |f(z)|.
- **Gradient error**: the largest relative 2-norm error of the gradient of any parameter, of z0 or
  of x. The reference of a trajectory is Tsit5 in float64 at 1e-10, unrolled; that of an equilibrium
  is solved in float64 to 1e-13.
- **Peak**: bytes of the tensors alive at the fullest moment of the step, beyond what was there
  before.

Ours and torchode's backpropagation control the error of each sample; torchdiffeq and torchode's
joint adjoint (`JointBacksolveAdjoint`) the root mean square over the batch, where the many hide the
few. torchdiffeq also interpolates the last state, where the others end a step. So the same
tolerance is not the same error: see both columns. torchdiffeq runs with its defaults, and with the
seminorm besides, in which parameters do not steer the steps, as in ours; torchode with the
controller of its documentation. The allocator keeps freed memory, for all alike.
"""

JOINT = """\
diffrax runs with its default gradient, `RecursiveCheckpointAdjoint`, each sample with steps of its
own under `vmap`; *joint* is the batch as one state; `adjoint` is its `BacksolveAdjoint`."""


def page(rows: Sequence[Row], about: Mapping[str, Any], tried: str) -> str:
    """The whole page."""
    lines = [INTRODUCTION.format(**about), machine_line(about), ""]
    lines += [*jax_peers.said(rows, JOINT), "## Against the targets", ""]
    lines += [
        *_overhead(rows),
        *against_torchdiffeq(rows),
        *best(rows),
        *compiled(rows),
        *_heterogeneous(rows, about["warned"]),
        *_steady(rows),
    ]
    lines += sections(
        rows, DESCRIPTIONS, dict.fromkeys((MLP, CONV, HETEROGENEOUS), Trajectory.compared)
    )
    lines += [*_notes("Warnings", about["warned"]), *_notes("Left out", about["left_out"])]
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


def _overhead(rows: Sequence[Row]) -> Iterator[str]:
    """Ratios to the floor."""
    yield from ("Overhead (x floor):", "")
    cells = []
    for problem, gradient, limit in OVERHEAD:
        found = {method: find(rows, problem, OURS, method, gradient) for method in METHODS}
        ratios = (
            f"{row.ratio_to_floor:.2f}, {missed(row.ratio_to_floor, limit)}"
            if row
            else "not measured"
            for row in found.values()
        )
        cells.append((problem, gradient, f"{limit:g}", *ratios))
    yield from table(("problem", "gradient", "at most", *METHODS), cells)


def _heterogeneous(rows: Sequence[Row], warned: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Exact or warned, and the evaluations."""
    yield (
        f"Heterogeneous: a gradient error below {error(PRECISE)} or a warning (its text is "
        "below), and fewer evaluations of each sample"
    )
    yield from (
        "than torchdiffeq's dopri5 with the same gradient (`checkpointed` buys memory with "
        "evaluations, and has no limit):",
        "",
    )
    cells = []
    for row in rows:
        if name_of(row) == HETEROGENEOUS and row.library == OURS and _in_torch(row):
            told = f"{row.problem}, {OURS}, {row.method}, {row.gradient}" in warned
            held = (
                "met"
                if bad(row.gradient_error) < PRECISE
                else "met: warned"
                if told
                else "missed, no warning"
            )
            cells.append(
                (row.method, row.gradient, error(row.gradient_error), held, *_fewer(row, rows))
            )
    yield from table(
        (
            "method",
            "gradient",
            "gradient error",
            "target",
            "evaluations",
            "torchdiffeq's",
            "target",
        ),
        cells,
    )


def _in_torch(row: Row) -> bool:
    """Whether it is one of the adaptive steps in the loop of torch, whose counts are all rows'."""
    method, *parts = row.method.split(", ")
    return method in METHODS and not {*parts}.intersection(*WAYS[-1:])


def _fewer(row: Row, rows: Sequence[Row]) -> tuple[str, str, str]:
    other = (
        None
        if row.gradient == CHECKPOINTED
        else find(rows, HETEROGENEOUS, TORCHDIFFEQ, "dopri5", row.gradient)
    )
    if other is None:
        return count(row.evaluations), "", ""
    return (
        count(row.evaluations),
        count(other.evaluations),
        missed(row.evaluations / other.evaluations, 1),
    )


def _steady(rows: Sequence[Row]) -> Iterator[str]:
    """Evaluations, exactness and speed."""
    yield (
        "Steady state: evaluations (that of the gradient included), a gradient error below "
        f"{error(PRECISE)}, and at least"
    )
    yield from (f"{SETTLES:g} x faster than torchdiffeq's adjoint to T = {HORIZON:g}:", "")
    theirs = next(
        (row for row in rows if name_of(row) == STEADY and row.library == TORCHDIFFEQ), None
    )
    cells = []
    for name, limit, way in ((*pair, way) for pair in EVALUATIONS.items() for way in WAYS):
        title, method = (", ".join([first, *way]) for first in (name, settling(name)))
        row = find(rows, STEADY, OURS, method, IMPLICIT)
        if row is None:
            cells += [] if way else [(name, str(limit), "not measured", "", "", "")]
            continue
        spent = f"{count(row.evaluations)}, {missed(row.evaluations, limit)}"
        exact = f"{error(row.gradient_error)}, {missed(bad(row.gradient_error), PRECISE)}"
        speed = (
            f"{theirs.seconds / row.seconds:.1f} x, {short(theirs.seconds / row.seconds, SETTLES)}"
            if theirs
            else "not measured"
        )
        cells.append((title, str(limit), spent, error(row.residual_max), exact, speed))
    yield from table(
        ("ODE solver", "at most", "evaluations", "residual", "gradient error", "faster"), cells
    )


def _notes(title: str, notes: Mapping[str, str | Sequence[str]]) -> list[str]:
    """What was said of single rows."""
    if not notes:
        return []
    lines = [
        f"- {row}: {text if isinstance(text, str) else '; '.join(text)}"
        for row, text in notes.items()
    ]
    return [f"## {title}", "", *lines, ""]
