"""Markdown tables and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, an empty line after it."""
    rule = ["---"] * len(header)
    return [*(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)), ""]


def count(value: float) -> str:
    """Evaluations: whole where they are whole."""
    return f"{value:.1f}".removesuffix(".0")


def error(value: float | None) -> str:
    """A residual or an error."""
    return (
        "not finite" if value is None else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    )


def missed(value: float, limit: float) -> str:
    """How a ratio stands to its upper limit."""
    return "met" if value <= limit else f"missed by {100 * (value / limit - 1):.0f} %"


def short(value: float, limit: float) -> str:
    """How a ratio stands to its lower limit."""
    return "met" if value >= limit else f"missed by {limit / value:.3g} x"
