"""All pictures of a diagnosis on one page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from implicitcore import plots
from implicitcore_lab.diagnosis.record import Diagnosis

COLUMNS = 3

CURVES: dict[str, Callable[..., Axes]] = {
    "trace": plots.residuals,
    "steps": plots.evaluations,
    "spectral_radius": plots.spectral_radii,
    "gradient_error": plots.gradient_errors,
    "start_distance": plots.start_distances,
}
"""How each curve of one tensor is drawn."""

Panel = Callable[[Axes], Axes]


def draw_diagnosis(path: str | Path, diagnosis: Diagnosis) -> None:
    """Draw what was measured into a PNG file, a panel for each curve.

    Arguments:
        path: the file.
        diagnosis: what :func:`diagnose` gave.
    """
    panels = _panels(diagnosis)
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = Figure(figsize=(5 * COLUMNS, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(", ".join(diagnosis.causes) or "no fault found")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        panel(ax)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.savefig(path, dpi=100)


def _panels(diagnosis: Diagnosis) -> list[Panel]:
    curves = diagnosis.curves
    panels: list[Panel] = [
        partial(_curve, function, curves[name])
        for name, function in CURVES.items()
        if name in curves and curves[name].numel()
    ]
    if "step_sizes" in curves and len(curves["step_sizes"]):
        times, sizes = curves["step_times"], curves["step_sizes"]
        panels.append(lambda ax: plots.step_sizes(times, sizes, ax=ax))
    path, velocity = curves.get("path"), diagnosis.velocity
    if path is not None and velocity is not None and path.shape[1] > 1:
        panels.append(lambda ax: plots.phase_portrait(velocity, path, ax=ax))
    return panels


def _curve(function: Callable[..., Axes], values: Tensor, ax: Axes) -> Axes:
    return function(values, ax=ax)
