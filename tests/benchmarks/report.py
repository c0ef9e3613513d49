"""What the pages of the benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.markdown import count, error, table
from benchmarks.rows import Row


def sections(
    rows: Sequence[Row], descriptions: Mapping[str, str], compared: Mapping[str, str]
) -> Iterator[str]:
    """The measurements of each problem under its name; ``compared`` names what z was judged by,
    where that is no residual."""
    yield from ("## Measurements", "")
    for problem, description in descriptions.items():
        of_problem = [row for row in rows if name_of(row) == problem]
        if of_problem:
            yield from (
                f"### {problem}",
                "",
                description,
                "",
                *measurements(of_problem, compared.get(problem, "residual")),
            )


def measurements(rows: Sequence[Row], compared: str = "residual") -> Iterator[str]:
    """A table for each tolerance."""
    header = (
        "library",
        "method",
        "gradient",
        "ms",
        "x floor",
        "evaluations",
        "vjps",
        compared,
        "gradient error",
        "peak MiB",
    )
    for tol in dict.fromkeys(map(tol_of, rows)):
        yield from (f"Tolerance {tol}:", "")
        yield from table(header, [_cells(row) for row in rows if tol_of(row) == tol])


def _cells(row: Row) -> tuple[str, ...]:
    spent = (
        f"{row.seconds * 1e3:.2f}",
        f"{row.ratio_to_floor:.2f}",
        count(row.evaluations),
        count(row.vjps),
    )
    found = error(row.residual_max), error(row.gradient_error), f"{row.peak_bytes / 2**20:.1f}"
    return row.library, row.method, row.gradient, *spent, *found


def machine_line(about: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Measured on {about['processor']}, {about['threads']} of {about['cores']} cores; "
        f"Python {about['python']}, {versions}."
    )


def pieces_table(pieces: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Microseconds of what the floors are made of."""
    names = list(dict.fromkeys(name for times in pieces.values() for name in times))
    rows = [
        (problem, *(f"{times[name] * 1e6:.1f}" if name in times else "" for name in names))
        for problem, times in pieces.items()
    ]
    return table(("microseconds", *names), rows)


def compile_table(seconds: Mapping[str, float]) -> list[str]:
    """What compiling took; empty where nothing was compiled."""
    rows = [(row, f"{spent:.1f}") for row, spent in seconds.items()]
    return ["## Time of compiling", "", *table(("row", "seconds"), rows)] if rows else []


def bad(value: float | None) -> float:
    """What is not finite is infinitely bad."""
    return float("inf") if value is None else value


def name_of(row: Row) -> str:
    """The problem, without its tolerance."""
    return row.problem.rsplit(", tol ", 1)[0]


def tol_of(row: Row) -> str:
    """The tolerance."""
    return row.problem.rsplit(", tol ", 1)[1]
