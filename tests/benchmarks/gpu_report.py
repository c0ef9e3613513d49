"""The page of the benchmark on a GPU, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from benchmarks.report import machine_line, pieces_table, sections
from benchmarks.root_problems import DESCRIPTIONS
from benchmarks.rows import Row

INTRODUCTION = """\
<!-- Written by `make bench-gpu` from gpu.json: edit neither this page nor its numbers. -->

# Equilibria on a GPU

On a machine with an NVIDIA GPU:

```bash
make bench-gpu
make test-gpu
implicitcore bench backend --help
```

The first writes this page: whole training steps, a forward solve and the implicit gradient by the
same method, float32, with each backend that can run and with the cell as it is and under
`torch.compile`, against TorchDEQ and the loops that a careful user writes by hand. The second is
the test suite of the GPU; the third measures the kernels one by one. Problems, columns and errors
are those of [the benchmark on the CPU](root.md).
"""

ABSENT = """\
**Nothing is measured yet: no GPU machine was at hand.** What these programs do was tried on a
CPU (`--device cpu`), where the fused kernels are only checked, not timed; no time of a GPU
stands anywhere in this documentation.
"""


def page(rows: Sequence[Row], about: Mapping[str, Any], tried: str) -> str:
    """The whole page."""
    if not rows:
        return "\n".join([INTRODUCTION, ABSENT])
    lines = [INTRODUCTION, f"Device: {about['device']}. {machine_line(about)}", ""]
    lines += ["## Against torch, eager", "", *_against_torch(rows)]
    lines += [*sections(rows, DESCRIPTIONS, {}), "## Time of f", "", *pieces_table(about["pieces"])]
    return "\n".join([*lines, *(["## What was tried", "", tried.strip(), ""] if tried else [])])


def _against_torch(rows: Sequence[Row]) -> Iterator[str]:
    """How often a step of each contender goes into one of the torch backend's, the same method;
    below one it is slower."""
    yield from (
        "Milliseconds of a step with the torch backend, and how many times faster the others are:",
        "",
    )
    base = {(row.problem, _solver(row)): row for row in rows if _way(row) == "implicitcore, torch"}
    ways = list(dict.fromkeys(way for way in map(_way, rows) if way != "implicitcore, torch"))
    found = {(row.problem, _solver(row), _way(row)): row for row in rows}
    cells = []
    for (problem, solver), row in base.items():
        others = [found.get((problem, solver, way)) for way in ways]
        cells.append(
            (
                problem,
                solver,
                f"{row.seconds * 1e3:.2f}",
                *(f"{row.seconds / other.seconds:.2f} x" if other else "" for other in others),
            )
        )
    yield from table(("problem", "method", "ms", *ways), cells)


def _solver(row: Row) -> str:
    return row.method.partition(", ")[0]


def _way(row: Row) -> str:
    """Whose loop, which backend, and what was done to the cell."""
    return f"{row.library}, {row.method.partition(', ')[2]}"
