"""What the programs that draw curves share: points, their JSON file, the picture, the options."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import jax_peers
from benchmarks.options import add_shared
from benchmarks.rows import DOCS, machine
from benchmarks.timing import Clock, interleave

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind tell apart."""
DPI, PALETTE = 80, 40
LONGEST = 1.0
"""Seconds of the processor for a call: a curve ends before a point that takes longer."""
PATIENCE = 3.0
"""Seconds for the repetitions of a point; at least two are made."""
ENDS = f"A curve ends before a call that takes the processor over {LONGEST:g} s."
Result = TypeVar("Result")


@dataclass(frozen=True)
class Point:
    """What was measured at one x of a sweep, of one curve."""

    sweep: str
    curve: str
    x: float
    values: dict[str, float]


@dataclass(frozen=True)
class Style:
    """How a curve is drawn."""

    color: str
    line: str | tuple[int, tuple[int, ...]] = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """One pair of axes, both logarithmic: ``x`` and ``y`` of the points of a sweep, by their
    names; ``x`` is the sweep's own where it has no name."""

    sweep: str
    title: str
    x_label: str
    y_label: str
    y: str
    x: str = ""


@dataclass(frozen=True)
class Picture:
    """The panels, in rows of ``columns``."""

    panels: Sequence[Panel]
    columns: int
    styles: Callable[[str], Style]

    def draw(self, path: Path, points: Sequence[Point], heading: str) -> None:
        """Write the PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image

        rows = -(-len(self.panels) // self.columns)
        figure = Figure(
            figsize=(4.2 * self.columns, 3.2 * rows + 0.9), dpi=DPI, layout="constrained"
        )
        grid = figure.subplots(rows, self.columns, squeeze=False).flatten()
        for axes, panel in zip(grid, self.panels, strict=False):
            self._fill(axes, panel, points)
        for axes in grid[len(self.panels) :]:
            axes.set_axis_off()
        handles = {
            name: line
            for axes in grid
            for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(5, len(handles)),
            frameon=False,
            fontsize=9,
        )
        figure.suptitle(heading, fontsize=7, color="0.4")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        picture.quantize(PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)

    def _fill(self, axes: Any, panel: Panel, points: Sequence[Point]) -> None:
        from matplotlib.ticker import NullFormatter

        of_panel = [point for point in points if point.sweep == panel.sweep]
        for name in dict.fromkeys(point.curve for point in of_panel):
            style = self.styles(name)
            found = [
                (point.values[panel.x] if panel.x else point.x, point.values[panel.y])
                for point in of_panel
                if point.curve == name and panel.y in point.values
            ]
            axes.loglog(
                *zip(*found, strict=True) if found else ((), ()),
                color=style.color,
                ls=style.line,
                marker=style.marker,
                ms=4,
                lw=1.4,
                label=name,
            )
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
        axes.set_title(panel.title, fontsize=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="major", color="0.9", lw=0.6)


@dataclass(frozen=True)
class Curves:
    """One program.

    Attributes:
        name: of its files.
        description: for ``--help``.
        sweeps: by name, what measures its points, quick or not.
        picture: of all points; None where they are for a table.
        libraries: whose versions are told.
        threads: of torch, by default. One where the processor's time is taken: it would count
            threads that wait.
    """

    name: str
    description: str | None
    sweeps: Mapping[str, Callable[[Timing], Iterator[Point]]]
    picture: Picture | None
    libraries: Sequence[str]
    threads: int = 2

    def main(self, arguments: list[str] | None = None) -> None:
        options = self._options(arguments)
        path = (options.output or DOCS) / f"{self.name}.json"
        if not options.report:
            self._measure(path, options)
        if self.picture:
            points, about = load(path)
            self.picture.draw(path.with_suffix(".png"), points, heading(about))
        print(f"wrote {path}" + (f" and {path.with_suffix('.png').name}" if self.picture else ""))

    def _measure(self, path: Path, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        timing = Timing(options.quick, 1 if options.quick else options.repetitions)
        kept = load(path)[0] if options.only and path.exists() else []
        chosen = [name for name in self.sweeps if options.only in name]
        points = [point for point in kept if point.sweep not in chosen]
        about = machine(sorted(filter(find_spec, self.libraries)))
        peers = jax_peers.versions() if set(self.libraries).intersection(jax_peers.NAMES) else {}
        about["versions"] |= {name: peers[name] for name in self.libraries if name in peers}
        about |= {"repetitions": timing.repetitions}
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        for name in chosen:
            with warnings.catch_warnings(action="ignore"):  # the points say what went wrong
                for point in self.sweeps[name](timing):
                    print(point.sweep, point.curve, f"{point.x:g}", point.values, flush=True)
                    points.append(point)
            about["minutes"] = round((time.perf_counter() - begin) / 60, 1)
            save(path, points, about)  # an end in the next one loses no more than that
        jax_peers.close()

    def _options(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}", description=self.description
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="few tiny points: does the program run? Wants --output",
        )
        parser.add_argument(
            "--only",
            default="",
            metavar="TEXT",
            help=f"only the sweeps whose name holds TEXT, of: {', '.join(self.sweeps)}; the "
            "others stay as they were saved",
        )
        parser.add_argument(
            "--report", action="store_true", help="draw the saved points anew; measures nothing"
        )
        add_shared(parser, repetitions=5)
        parser.set_defaults(threads=self.threads)
        options = parser.parse_args(arguments)
        if options.quick and options.output is None:
            parser.error("--quick wants --output: its points are no measurements")
        return options


@dataclass(frozen=True)
class Timing:
    """How the points are timed, so that a program ends in minutes.

    Attributes:
        quick: nothing is left out, and nothing is repeated to fill a window of time.
        repetitions: of all works together, at most.
        ended: the curves that have a point too slow to be drawn, and those after it.
    """

    quick: bool
    repetitions: int
    ended: set[tuple[str, str]] = field(default_factory=set)

    def first(self, sweep: str, curve: str, work: Callable[[], Result]) -> Result | None:
        """What the first call returns. None where the curve has ended: from the point on whose call
        takes over :data:`LONGEST`."""
        if (sweep, curve) in self.ended:
            return None
        begin = time.process_time()
        found = work()
        slow = time.process_time() - begin > LONGEST
        # The very first call imports or compiles, so a second one decides.
        if not self.quick and (slow or hasattr(work, "seconds")) and _seconds(work) > LONGEST:
            self.ended.add((sweep, curve))
            return None
        return found

    def __call__(
        self, works: Mapping[str, Callable[[], object]], clock: Clock = time.perf_counter
    ) -> dict[str, float]:
        """Median seconds of a call of each; all are timed in each repetition."""
        if self.quick:
            return interleave(works, self.repetitions, seed=0, window=0.0, clock=clock)
        begin = time.perf_counter()
        for work in works.values():
            work()
        fit = int(PATIENCE / (time.perf_counter() - begin + 1e-9))
        repetitions = min(self.repetitions, max(2, fit))
        return interleave(works, repetitions, seed=0, window=0.005, clock=clock)


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, in whatever process it runs."""
    elsewhere = getattr(work, "seconds", None)
    if elsewhere:
        return elsewhere(1)
    begin = time.process_time()
    work()
    return time.process_time() - begin


def heading(about: Mapping[str, Any]) -> str:
    """Where and with what it was measured, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    cores = f"{about['threads']} of {about['cores']} cores"
    median = f"median of up to {about['repetitions']}"
    return f"{about['processor']}, {cores}; {versions}; {median}; {about['minutes']:g} min"


def save(path: Path, points: Sequence[Point], about: Mapping[str, Any]) -> None:
    """One JSON list: the points, each on a line of its own, and the row ``machine``."""
    entries = [*map(_rounded, points), {"machine": dict(about)}]
    lines = [json.dumps(entry, allow_nan=False) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _rounded(point: Point) -> dict[str, Any]:
    """To what a picture can show."""
    values = {name: float(f"{value:.4g}") for name, value in point.values.items()}
    return {**asdict(point), "values": values}


def load(path: Path) -> tuple[list[Point], dict[str, Any]]:
    """What :func:`save` wrote."""
    *points, last = json.loads(path.read_text(encoding="utf-8"))
    return [Point(**point) for point in points], last["machine"]
