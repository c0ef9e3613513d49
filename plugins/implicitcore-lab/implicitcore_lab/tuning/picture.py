"""The front as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from implicitcore_lab.axes import plain_ticks
from implicitcore_lab.tuning.space import LIMITS
from implicitcore_lab.tuning.trials import Row

if TYPE_CHECKING:
    from implicitcore_lab.tuning.result import Tuned


def table(tuned: Tuned) -> Table:
    """The Pareto front, the fastest first; the default beside it where it is not on it."""
    found = Table(title="Pareto front: time of a training step and gradient error")
    for title in ("trial", "time / default", "gradient error", "f", "backward"):
        found.add_column(title, justify="right")
    found.add_column("configuration", overflow="fold")
    shown = tuned.front if tuned.default in tuned.front else (*tuned.front, tuned.default)
    for row in shown:
        marked = "bold" if row == tuned.best else ""
        found.add_row(*_cells(row), style=marked)
    return found


def _cells(row: Row) -> tuple[str, ...]:
    it, name = row.measured, str(row.number)
    if it is None:
        return name, "-", "-", "-", "-", f"{words(row)}: {row.reason}"
    return (
        name,
        f"{it.time_ratio:.2f}",
        f"{it.gradient_error:.1e}",
        str(it.evaluations),
        str(it.backward),
        words(row),
    )


def words(row: Row) -> str:
    """A configuration in a line: ``picard(tol=0.01), implicit(gmres(tol=1e-05)), torch``."""
    if row.is_default:
        return "the default"
    return ", ".join(map(_words, row.parts.values()))


def _words(part: Any) -> str:
    if isinstance(part, float):
        return f"{part:.2g}"
    if not isinstance(part, Mapping):
        return str(part)
    told = [
        f"{name}={_words(value)}"
        for name, value in part.items()
        if name not in ("name", *LIMITS) and value is not False
    ]
    return f"{part['name']}({', '.join(told)})" if told else part["name"]


def draw(path: Path, tuned: Tuned) -> None:
    """Draw gradient error against time: every trial, the front, the default and the best."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    measured = [row.measured for row in tuned.rows if row.measured]
    axes.loglog(*_points(measured), "o", color="0.7", markersize=4, label="trials")
    front = [row.measured for row in tuned.front if row.measured]
    axes.loglog(*_points(front), "o-", color="C0", drawstyle="steps-post", label="Pareto front")
    if tuned.default.measured:
        axes.loglog(*_points([tuned.default.measured]), "s", color="C1", label="default")
    if tuned.best.measured and not tuned.best.is_default:
        axes.loglog(*_points([tuned.best.measured]), "*", color="C3", markersize=13, label="best")
    axes.axhline(tuned.max_gradient_error, color="0.5", linestyle=":", label="allowed error")
    plain_ticks(axes.xaxis, subs=(1, 2, 3, 5, 7))
    axes.set(
        title="Training step of the layer",
        xlabel="time, as a multiple of the default's",
        ylabel="relative error of the gradient",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _points(measured: list[Any]) -> tuple[list[float], list[float]]:
    return [it.time_ratio for it in measured], [it.gradient_error for it in measured]
