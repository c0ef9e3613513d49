"""The pictures of a report, as SVG without a word of the user's in them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from implicitcore_lab.axes import band, scale
from implicitcore_lab.records import Epoch
from implicitcore_lab.report.groups import Group
from implicitcore_lab.spread import Spread

COLOURS = 10
STYLES = ("-", "--", ":")
SIZE = (4.6, 3.1)
DETERMINISTIC: dict[Any, Any] = {
    "svg.hashsalt": "implicitcore",
    "axes.grid": True,
    "grid.alpha": 0.3,
}


class Picture(NamedTuple):
    """One figure.

    Attributes:
        name: of the figure.
        title: what a reader sees.
        svg: the picture, XML.
    """

    name: str
    title: str
    svg: str


class _Curve(NamedTuple):
    """What a figure shows against the epoch."""

    name: str
    title: str
    figure: Callable[[Epoch], float | None]
    log: bool = False


def _percent(name: str) -> Callable[[Epoch], float | None]:
    def found(epoch: Epoch) -> float | None:
        value = getattr(epoch, name)
        return None if value is None else 100 * value

    return found


CURVES = (
    _Curve("test_accuracy", "test accuracy (%)", _percent("test_accuracy")),
    _Curve("explicit_accuracy", "accuracy without the solve (%)", _percent("explicit_accuracy")),
    _Curve("validation_accuracy", "validation accuracy (%)", _percent("validation_accuracy")),
    _Curve("loss", "training loss", lambda epoch: epoch.loss, log=True),
    _Curve("test_loss", "test loss", lambda epoch: epoch.test_loss, log=True),
    _Curve("evaluations", "evaluations per step, forward", lambda epoch: epoch.evaluations),
    _Curve("backward", "evaluations per step, backward", lambda epoch: epoch.backward),
    _Curve("forward_ms", "milliseconds per step, forward", lambda epoch: epoch.forward_ms),
    _Curve("backward_ms", "milliseconds per step, backward", lambda epoch: epoch.backward_ms),
    _Curve("spectral_radius", "spectral radius of J", lambda epoch: epoch.spectral_radius),
    _Curve("start_distance", "|z* - z0| / |z*|", lambda epoch: epoch.start_distance),
    _Curve("unconverged", "unconverged training samples", lambda epoch: epoch.unconverged),
)


def style(index: int) -> tuple[int, int]:
    """The number of the colour and of the line style of a group."""
    return index % COLOURS, index // COLOURS % len(STYLES)


def pictures(groups: Sequence[Group]) -> Iterator[Picture]:
    """The figures that these runs have something for.

    Lines are means over the seeds, with a band of one standard deviation.
    """
    for curve in CURVES:
        lines = [_spreads(group, curve.figure) for group in groups]
        found = [spread for line in lines for spread in line if spread]
        if any(spread.mean for spread in found):
            yield _against_epochs(curve, lines)
    yield _against_time(groups)
    if any(run.record.residuals for group in groups for run in group.runs):
        yield _residuals(groups)


def _spreads(group: Group, figure: Callable[[Epoch], float | None]) -> list[Spread | None]:
    """A figure of each epoch over the seeds that reached it."""
    each = [map(figure, run.record.epochs) for run in group.runs]
    return [Spread.of(values) for values in zip_longest(*each)]


def _against_epochs(curve: _Curve, lines: Sequence[Sequence[Spread | None]]) -> Picture:
    def draw(axes: Axes) -> None:
        for index, line in enumerate(lines):
            found = [(epoch, spread) for epoch, spread in enumerate(line, 1) if spread]
            epochs = [epoch for epoch, _ in found]
            _band(axes, index, epochs, [spread for _, spread in found])
        if curve.log:
            means = [spread.mean for line in lines for spread in line if spread]
            scale(axes.set_yscale, axes.yaxis, means)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _picture(curve.name, f"{curve.title} per epoch", ("epoch", curve.title), draw)


def _against_time(groups: Sequence[Group]) -> Picture:
    def draw(axes: Axes) -> None:
        times: list[float] = []
        for index, group in enumerate(groups):
            pairs = zip(
                _spreads(group, lambda epoch: epoch.seconds),
                _spreads(group, _percent("test_accuracy")),
                strict=True,
            )
            found = [(time.mean, spread) for time, spread in pairs if time and spread]
            _band(axes, index, [time for time, _ in found], [spread for _, spread in found])
            times += [time for time, _ in found]
        scale(axes.set_xscale, axes.xaxis, times)

    labels = ("training time (s)", "test accuracy (%)")
    return _picture("time", "test accuracy against training time", labels, draw)


def _residuals(groups: Sequence[Group]) -> Picture:
    def draw(axes: Axes) -> None:
        for index, group in enumerate(groups):
            for run in group.runs:
                found = run.record.residuals
                axes.plot(range(len(found)), found, linewidth=1, **_look(index))
        axes.set_yscale("log", nonpositive="mask")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    labels = ("iteration of the solver", "worst |f(z) - z| / |z| of a test batch")
    return _picture("residual", "residual per iteration, each seed", labels, draw)


def _band(axes: Axes, index: int, at: Sequence[float], spreads: Sequence[Spread]) -> None:
    band(axes, at, spreads, {"marker": "o" if len(at) == 1 else "", **_look(index)})


def _look(index: int) -> dict[str, Any]:
    colour, line = style(index)
    return {"color": f"C{colour}", "linestyle": STYLES[line]}


def _picture(
    name: str, title: str, labels: tuple[str, str], draw: Callable[[Axes], None]
) -> Picture:
    with mpl.rc_context(DETERMINISTIC):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set(xlabel=labels[0], ylabel=labels[1])
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return Picture(name, title, stream.getvalue())
