"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from implicitcore_lab.experiment import Outcome


def draw(path: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Draw accuracy against time and residual against iteration, side by side.

    Arguments:
        path: the PNG file.
        outcomes: what was trained.
        title: of the picture.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for index, outcome in enumerate(outcomes):
        style = {
            "color": f"C{index}",
            "marker": "osD^vPX*"[index % 8],
            "markersize": 4,
            "label": outcome.layer,
        }
        epochs = outcome.history.epochs
        left.plot(
            [epoch.seconds for epoch in epochs], [epoch.test_accuracy for epoch in epochs], **style
        )
        if outcome.residuals:
            right.semilogy(range(len(outcome.residuals)), outcome.residuals, **style)
    _finish_accuracy(left, outcomes[0].test.samples)
    _finish_residual(right, [outcome.layer for outcome in outcomes if not outcome.residuals])
    figure.savefig(path, dpi=120)


def _finish_accuracy(axes: Axes, images: int) -> None:
    axes.set(
        title="Test accuracy against training time",
        xlabel="training time (s), a mark per epoch",
        ylabel=f"test accuracy, of {images:,} images",
    )
    axes.set_xscale("log")  # the layers differ by factors
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
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
