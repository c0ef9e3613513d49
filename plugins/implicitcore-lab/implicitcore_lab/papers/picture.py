"""The pictures of the pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from implicitcore_lab.axes import plain_ticks
from implicitcore_lab.papers.table import Column, Results, Table, values

WIDTH, ROW_HEIGHT, MARGIN = 11.0, 0.26, 1.6
DPI = 110
MANY, CLOSE = 8.0, 1.25
"""Ratios of the largest to the least value: above, and below, which the axis is another."""


def draw_table(path: Path, table: Table, results: Results) -> None:
    """Write the picture of a table as PNG."""
    figure = Figure(figsize=(WIDTH, MARGIN + ROW_HEIGHT * max(len(results), 8)))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    table.draw(figure, results)
    figure.savefig(path, dpi=DPI)


def draw_bars(figure: Figure, results: Results, columns: Sequence[Column]) -> None:
    """Horizontal bars, a panel for each column and a bar for each row.

    Arguments:
        figure: to draw in.
        results: by the titles of the rows.
        columns: what is drawn.
    """
    names = list(results)
    row = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(row, columns, strict=True):
        found = {name: values(results[name], column.name) for name in names}
        for place, name in enumerate(names):
            if found[name]:
                error = stdev(found[name]) if len(found[name]) > 1 else None
                axes.barh(place, mean(found[name]), xerr=error, color=f"C{place % 10}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(column.title, fontsize=9)
        _scale(axes, [value for each in found.values() for value in each])
        axes.grid(axis="x", alpha=0.3)
    row[0].invert_yaxis()


def _scale(axes: Axes, found: Sequence[float]) -> None:
    """Logarithmic where the values differ by factors; close to them where they hardly differ."""
    if not found or min(found) <= 0:
        return
    low, high = min(found), max(found)
    if high > MANY * low:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    elif high < CLOSE * low:
        room = 0.2 * (high - low) or 0.1 * high
        axes.set_xlim(low - room, high + room)
