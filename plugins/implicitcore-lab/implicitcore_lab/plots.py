"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from implicitcore_lab.axes import band, scale
from implicitcore_lab.experiment import Outcome
from implicitcore_lab.spread import Spread


def draw(path: Path, groups: Sequence[Sequence[Outcome]], title: str) -> None:
    """Draw accuracy against time and residual against iteration, side by side.

    Arguments:
        path: the PNG file.
        groups: what was trained, the seeds of each layer together.
        title: of the picture.
    """
    figure = compared(groups, title)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def compared(groups: Sequence[Sequence[Outcome]], title: str) -> Figure:
    """The picture: mean and standard deviation over the seeds, and the residual of each."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    times: list[float] = []
    for index, group in enumerate(groups):
        style = {
            "color": f"C{index}",
            "marker": "osD^vPX*"[index % 8],
            "markersize": 4,
        }
        seconds, accuracies = zip(*_epochs(group), strict=True)
        band(left, seconds, accuracies, {**style, "label": group[0].layer})
        times += seconds
        for outcome in group:
            if outcome.residuals:
                label = group[0].layer if outcome is group[0] else None
                right.semilogy(
                    range(len(outcome.residuals)), outcome.residuals, label=label, **style
                )
    _finish_accuracy(left, groups[0][0].test.samples, len(groups[0]))
    scale(left.set_xscale, left.xaxis, times)  # the layers differ by factors
    _finish_residual(right, [group[0].layer for group in groups if not group[0].residuals])
    return figure


def _epochs(group: Sequence[Outcome]) -> Iterator[tuple[float, Spread]]:
    """The mean time and the accuracies of each epoch, over the seeds that reached it."""
    for epochs in zip_longest(*(outcome.history.epochs for outcome in group)):
        seconds = Spread.of([epoch and epoch.seconds for epoch in epochs])
        accuracy = Spread.of([epoch and epoch.test_accuracy for epoch in epochs])
        if seconds and accuracy:
            yield seconds.mean, accuracy


def _finish_accuracy(axes: Axes, images: int, seeds: int) -> None:
    spread = f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    axes.set(
        title="Test accuracy against training time",
        xlabel=f"training time (s), a mark per epoch{spread}",
        ylabel=f"test accuracy, of {images:,} images",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _finish_residual(axes: Axes, without: Sequence[str]) -> None:
    note = (
        f"\n(integrated to a fixed time, with no residual: {', '.join(without)})" if without else ""
    )
    axes.set(
        title="Residual against iteration",
        xlabel="iteration of the solver" + note,
        ylabel="worst |f(z) - z| / |z| of a test batch",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper right")
