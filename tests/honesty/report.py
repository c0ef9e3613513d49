"""The table of a run, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.markdown import table

from honesty.tally import Row, Tally

STATUSES = ("converged", "max_steps", "stalled", "diverged", "non_finite")
BEGIN, END = "<!-- honesty: begin -->", "<!-- honesty: end -->"


def header() -> tuple[str, ...]:
    statuses = (status.replace("_", " ") for status in STATUSES)
    return ("sweep", "of", "calls", "samples", *statuses, "refused", "worst / limit", "findings")


def cells(total: Tally) -> Iterator[tuple[str, ...]]:
    """A line for each part, and one for each sweep's sum."""
    sums: Tally = {}
    for (sweep, name), row in sorted(total.items()):
        yield _line(sweep, name, row)
        sums.setdefault((sweep, "all"), Row()).add(row)
    for (sweep, name), row in sums.items():
        yield _line(sweep, name, row)


def _line(sweep: str, name: str, row: Row) -> tuple[str, ...]:
    counts = [str(row.statuses[status]) if row.samples else "" for status in STATUSES]
    worst = f"{row.worst:.2f}" if row.worst else ""
    samples = str(row.samples) if row.samples else ""
    refused = str(row.refused)
    return (sweep, name, str(row.calls), samples, *counts, refused, worst, str(len(row.findings)))


def markdown(total: Tally, about: str) -> str:
    """The same as a page has it."""
    lines: Sequence[str] = table(header(), list(cells(total)))
    return "\n".join([about, "", *lines])


def written(page: str, text: str) -> str:
    """The page with the text between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:before]}\n\n{text.strip()}\n\n{page[after:]}"
