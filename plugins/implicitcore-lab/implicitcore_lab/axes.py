"""Axes with ticks that a reader can read off, and lines with their spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from implicitcore_lab.spread import Spread


def plain_ticks(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten, written as numbers."""
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def scale(set_scale: Callable[[str], None], axis: Axis, values: Sequence[float]) -> None:
    """Logarithmic, where the values are positive and lie more than a decade apart.

    Within a decade such an axis may have a single tick, or none.
    """
    if values and min(values) > 0 and max(values) > 10 * min(values):
        set_scale("log")
        plain_ticks(axis)


def band(axes: Axes, at: Sequence[float], spreads: Sequence[Spread], style: dict[str, Any]) -> None:
    """A line of means, with a band of one standard deviation where there are several seeds."""
    middle = [spread.mean for spread in spreads]
    around = [spread.deviation or 0.0 for spread in spreads]
    axes.plot(at, middle, **style)
    if any(around):
        low = [value - width for value, width in zip(middle, around, strict=True)]
        high = [value + width for value, width in zip(middle, around, strict=True)]
        axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
