"""Dispatch: a layer built by name and one built from objects, against their solver called by hand
(``make bench-dispatch``)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks import plain
from benchmarks.counting import Counted
from benchmarks.markdown import count, error, missed, table
from benchmarks.problem import Outcome, Problem
from benchmarks.report import machine_line
from benchmarks.root_problems import Dense, general, posed
from benchmarks.rows import DOCS, Row, load, machine, save
from benchmarks.timing import interleave, keep_memory
from implicitcore.extend import StepwiseRootSolver, System
from implicitcore.gradients.base import Solve
from implicitcore.tensors.packing import Packing
from implicitcore_lab.memory import peak_bytes

METHODS = {"picard": ic.Picard, "anderson": ic.Anderson, "broyden": ic.Broyden}
NAME, OBJECTS, HAND, LOOP = "layer by name", "layer from objects", "solver by hand", "loop by hand"
FORWARD, BOTH = "forward", "forward and backward"
LIMIT = 1.05

PAGE = """\
<!-- Written by `make bench-dispatch` from dispatch.json:
     edit neither this page nor its numbers. -->

# Dispatch

```bash
make bench-dispatch
```

What names, the layer and the gradient strategy cost over their own solver, on the smallest problem
where that could matter: 64 samples of tanh(W z + x) with 64 units, |W| = 0.9, float32. Times are of
the processor, on one thread: the median of {repetitions} repetitions, each of which times all four
ways in a new order.

- **{NAME}**: `ic.build("deq", f, root_solver=..., gradient=...)`, then `layer.solve`.
- **{OBJECTS}**: `ic.ImplicitLayer(ic.FixedPoint(f), solver=..., gradient=...)`, then `layer.solve`.
- **{HAND}**: the solver's own `solve` on a `System` under `no_grad`, and `Implicit.run` for the
  gradient: what the layers are measured against.
- **{LOOP}**: the same kernels, `solver.step` and the residual's norms, in a loop that keeps no best
  iterate and no status, and freezes no sample.

A name is looked up when the layer is built, and never again: the two layers are the same object in
all but how they came about.
"""


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    path = (options.output or DOCS) / "dispatch.json"
    if not options.report:
        torch.set_num_threads(options.threads)
        rows = list(_measure(2 if options.quick else options.repetitions, quick=options.quick))
        about = machine(["implicitcore", "torch"]) | {"repetitions": options.repetitions}
        print(*_overhead(rows), sep="\n")
        if options.quick and options.output is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, rows, about)
    path.with_suffix(".md").write_text(page(*load(path)), encoding="utf-8")
    print(f"wrote {path} and {path.with_suffix('.md').name}")


def page(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The whole page."""
    names = {"NAME": NAME, "OBJECTS": OBJECTS, "HAND": HAND, "LOOP": LOOP}
    lines = [
        PAGE.format(**about, **names),
        machine_line(about),
        "",
        "## Overhead",
        "",
        *_overhead(rows),
        "## Measurements",
        "",
    ]
    header = (
        "problem",
        "way",
        "method",
        "us",
        f"x {HAND}",
        "evaluations",
        "vjps",
        "residual",
        "gradient error",
        "peak KiB",
    )
    return "\n".join([*lines, *table(header, map(_cells, rows))])


def _overhead(rows: Sequence[Row]) -> list[str]:
    """What the layers cost over the solver called by hand."""
    found = {(row.problem, row.method, row.gradient): row.ratio_to_floor for row in rows}
    cells = []
    for problem, method in dict.fromkeys((row.problem, row.method) for row in rows):
        ratios = [found[problem, method, way] for way in (NAME, OBJECTS)]
        shown = [f"{100 * (ratio - 1):+.1f} %, {missed(ratio, LIMIT)}" for ratio in ratios]
        cells.append(
            (problem, method, *shown, f"{100 * (found[problem, method, LOOP] - 1):+.1f} %")
        )
    return table(("problem", "method", NAME, OBJECTS, LOOP), cells)


def _cells(row: Row) -> tuple[str, ...]:
    spent = (
        f"{row.seconds * 1e6:.0f}",
        f"{row.ratio_to_floor:.3f}",
        count(row.evaluations),
        count(row.vjps),
    )
    gradient = "" if row.gradient_error is None else error(row.gradient_error)
    return (
        row.problem,
        row.gradient,
        row.method,
        *spent,
        error(row.residual_max),
        gradient,
        f"{row.peak_bytes / 2**10:.0f}",
    )


def _measure(repetitions: int, *, quick: bool) -> Iterator[Row]:
    n = 8 if quick else 64
    problem = posed(f"{n} x {n}", Dense(general(n, 0.9)), (n, n))
    for tol in problem.tolerances[: 1 if quick else None]:
        for method in METHODS:
            for span in (FORWARD, BOTH):
                yield from _compare(problem, method, span, tol, repetitions)


def _compare(
    problem: Problem, method: str, span: str, tol: float, repetitions: int
) -> Iterator[Row]:
    """The four ways, timed side by side."""
    steps = _steps(problem, method, span, tol)
    seconds = interleave(
        steps, repetitions, seed=0, window=0.0 if repetitions < 3 else 0.01, clock=time.process_time
    )
    for way in steps:
        counted = Counted(problem.f, len(problem.z0))
        outcome = _steps(replace(problem, f=counted), method, span, tol)[way]()
        yield Row(
            problem=f"{problem.name}, {span}, tol {tol:.0e}".replace("e-0", "e-"),
            library="implicitcore",
            method=method,
            gradient=way,
            seconds=seconds[way],
            floor_seconds=seconds[HAND],
            ratio_to_floor=seconds[way] / seconds[HAND],
            evaluations=counted.plain + counted.graphs,
            vjps=counted.products,
            residual_max=problem.reference.residual(outcome.z.detach()),
            gradient_error=problem.reference.gradient_error(outcome.gradients)
            if outcome.gradients
            else None,
            peak_bytes=peak_bytes(steps[way], problem.z0.device),
        )


def _steps(
    problem: Problem, method: str, span: str, tol: float
) -> dict[str, Callable[[], Outcome]]:
    """The same solver in four ways; backward by the same method."""
    solver = METHODS[method](tol=tol, max_steps=problem.budget)
    gradient = ic.Implicit(solver)
    named = ic.build(
        "deq", problem.f, root_solver=ic.describe(solver), gradient=ic.describe(gradient)
    )
    objects = ic.ImplicitLayer(ic.FixedPoint(problem.f), solver=solver, gradient=gradient)
    forward, loop = span == FORWARD, partial(_loop, solver)
    return {
        NAME: partial(_layer, named, problem, forward),
        OBJECTS: partial(_layer, objects, problem, forward),
        HAND: partial(_by_hand, ic.FixedPoint(problem.f), solver, gradient, problem, forward),
        LOOP: partial(_forward_loop, loop, problem, tol)
        if forward
        else plain.implicit(loop, problem, tol),
    }


def _layer(layer: ic.ImplicitLayer, problem: Problem, forward: bool) -> Outcome:
    if forward:
        with torch.no_grad():
            return Outcome(layer.solve(problem.x, problem.z0).z, [])
    z = layer.solve(problem.x, problem.z0).z
    return Outcome(z, problem.gradients(z))


def _by_hand(
    dynamics: ic.Dynamics,
    solver: ic.RootSolver,
    gradient: ic.Implicit,
    problem: Problem,
    forward: bool,
) -> Outcome:
    packing = Packing.of(problem.z0)
    system = System.of(dynamics, problem.x, packing)
    if forward:
        with torch.no_grad():
            return Outcome(packing.unpack(solver.solve(system, packing.pack(problem.z0)).z), [])
    z = packing.unpack(gradient.run(Solve(solver), system, packing.pack(problem.z0)).z)
    return Outcome(z, problem.gradients(z))


def _forward_loop(loop: plain.Solve, problem: Problem, tol: float) -> Outcome:
    with torch.no_grad():
        return Outcome(loop(lambda z: problem.f(z, problem.x), problem.z0, tol, problem.budget), [])


def _loop(
    solver: StepwiseRootSolver[Any],
    f: Callable[[Tensor], Tensor],
    z: Tensor,
    tol: float,
    limit: int,
) -> Tensor:
    system = System.of(ic.FixedPoint(lambda z, _: f(z)), None, Packing.of(z))
    state = solver.init(system, z)
    for _ in range(limit):
        now = system.evaluate(z)
        if (now.residual.norm <= tol * now.residual.update_norm).all():
            break
        z, state = solver.step(system, now, state)
    return z


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny problem and few repetitions: does the program run?",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write the page anew from the saved rows; measures nothing",
    )
    parser.add_argument(
        "--repetitions", type=int, default=101, help="interleaved repetitions (default %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to save in (default docs/benchmarks; with --quick nothing is saved)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    keep_memory("benchmarks.dispatch")
    main()
