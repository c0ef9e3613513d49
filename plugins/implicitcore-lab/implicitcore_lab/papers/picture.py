"""The pictures of the pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from implicitcore_lab.papers.table import Column, Results, Table, values

WIDTH, ROW_HEIGHT, MARGIN = 11.0, 0.26, 1.6
DPI = 110


def draw_table(path: Path, table: Table, results: Results) -> None:
    """Write the picture of a table as PNG."""
    figure = Figure(figsize=(WIDTH, MARGIN + ROW_HEIGHT * max(len(results), 8)))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    table.draw(figure, results)
    figure.savefig(path, dpi=DPI)


def draw_bars(figure: Figure, results: Results, panels: Sequence[tuple[Column, bool]]) -> None:
    """Horizontal bars, a panel for each column and a bar for each row.

    Arguments:
        figure: to draw in.
        results: by the titles of the rows.
        panels: a column, and whether its axis is logarithmic.
    """
    names = list(results)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (column, logarithmic) in zip(row, panels, strict=True):
        for place, name in enumerate(names):
            found = values(results[name], column.name)
            if found:
                error = stdev(found) if len(found) > 1 else None
                axes.barh(place, mean(found), xerr=error, color=f"C{place % 10}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(column.title, fontsize=9)
        if logarithmic:
            axes.set_xscale("log")
        else:
            _near(axes, [value for name in names for value in values(results[name], column.name)])
        axes.grid(axis="x", alpha=0.3)
    row[0].invert_yaxis()


def _near(axes: Axes, found: Sequence[float]) -> None:
    """Limits close to the values, whose differences are small against them."""
    if found:
        low, high = min(found), max(found)
        room = 0.2 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - room, high + room)
