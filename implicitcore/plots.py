"""Pictures of what solves did, with matplotlib: each function takes ``ax=`` and returns it.

matplotlib is needed when a picture is drawn, and not before. ``implicitcore_lab.diagnose`` measures
all that is drawn here, and ``implicitcore diagnose`` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore.errors import ConfigError, InputError
from implicitcore.solution import SolveResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "evaluations",
    "gradient_errors",
    "phase_portrait",
    "residuals",
    "spectral_radii",
    "start_distances",
    "step_sizes",
]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID = 20


def residuals(
    trace: Tensor, *, quantiles: Sequence[float] = QUANTILES, ax: Axes | None = None
) -> Axes:
    """The residual against the iteration: quantiles over the samples.

    Arguments:
        trace: ``[steps, batch]``, as ``layer.solve(x, trace=True).trace`` has it.
        quantiles: in [0, 1]; the least and the greatest are the edges of a band.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: the trace has another shape.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(trace, 2, "trace", "[steps, batch]")
    ax = _axes(ax)
    levels = torch.tensor(sorted(quantiles), dtype=values.dtype)
    curves = values.nan_to_num(posinf=float("nan")).nanquantile(levels, dim=1)
    steps = list(range(len(values)))
    ax.fill_between(steps, curves[0].tolist(), curves[-1].tolist(), alpha=0.2, color="C0")
    for level, curve in zip(levels.tolist(), curves, strict=True):
        width = 2 if level == 0.5 else 0.8
        ax.plot(steps, curve.tolist(), color="C0", lw=width)
    if bool((curves > 0).any()):
        ax.set_yscale("log", nonpositive="mask")
    named = ", ".join(f"{level:.0%}" for level in levels.tolist())
    ax.set(title=f"Residual at {named} of samples", xlabel="iteration", ylabel="residual")
    return _whole_ticks(ax)


def evaluations(steps: Tensor | SolveResult, *, ax: Axes | None = None) -> Axes:
    """How many evaluations, or steps, each sample took: a histogram.

    Arguments:
        steps: ``[batch]``, or a solve, whose ``steps`` they are.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: they have another shape.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(steps.steps if isinstance(steps, SolveResult) else steps, 1, "steps")
    ax = _axes(ax)
    counts = [int(value) for value in values.tolist()]
    low, high = (min(counts), max(counts)) if counts else (0, 0)
    width = max(1, -(-(high - low + 1) // 40))
    edges = [low - 0.5 + width * k for k in range((high - low) // width + 2)]
    ax.hist(counts, bins=edges)
    ax.set(title="Steps of each sample", xlabel="steps", ylabel="samples")
    return _whole_ticks(ax)


def spectral_radii(radius: Tensor, *, ax: Axes | None = None) -> Axes:
    """The spectral radius of each sample in rising order, and where Picard's iteration diverges.

    Arguments:
        radius: ``[batch]``, as :func:`implicitcore.spectral_radius` gives it.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: it has another shape.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(radius, 1, "radius").sort().values
    ax = _axes(ax)
    ax.plot(range(len(values)), values.tolist(), ".", color="C0")
    ax.axhline(1.0, color="C3", lw=1, ls="--")
    above = (values > 1).float().mean().item() if len(values) else 0.0
    ax.set(
        title=f"Spectral radius of df/dz, {above:.0%} above 1",
        xlabel="samples, in order",
        ylabel="spectral radius",
    )
    return ax


def step_sizes(times: Tensor, sizes: Tensor, *, ax: Axes | None = None) -> Axes:
    """The step sizes of each sample along its trajectory.

    Arguments:
        times: ``[steps, batch]``, where each step begins.
        sizes: ``[steps, batch]``; those that are 0, of samples at rest, are left out.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: the two have other shapes.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(sizes, 2, "sizes", "[steps, batch]")
    begins = _values(times, 2, "times", "[steps, batch]")
    if begins.shape != values.shape:
        raise InputError(
            f"times: received shape {list(begins.shape)}, expected that of sizes, "
            f"{list(values.shape)}"
        )
    ax = _axes(ax)
    for begin, size in zip(begins.T, values.T, strict=True):
        taken = size > 0
        ax.plot(begin[taken].tolist(), size[taken].tolist(), color="C0", lw=0.6, alpha=0.5)
    if bool((values > 0).any()):
        ax.set_yscale("log")
    ax.set(title="Step size along the trajectory", xlabel="t", ylabel="step size")
    return ax


def phase_portrait(
    velocity: Callable[[Tensor], Tensor], path: Tensor, *, ax: Axes | None = None
) -> Axes:
    """The field in a plane, with the path that a solve took through it.

    States of more than two entries are shown in the plane of the path's two main directions,
    through its end.

    Arguments:
        velocity: dz/dt of states ``[k, n]``: for a cell, ``lambda z: f(z, x) - z``.
        path: ``[steps, n]``, the states of one sample, n at least 2.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: the path has another shape, or n is 1.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    states = path.detach().double().cpu()
    if states.ndim != 2 or states.shape[1] < 2 or not len(states):
        raise InputError(
            f"path: received shape {list(path.shape)}, expected [steps, n] with n of at least 2"
        )
    states = states[states.isfinite().all(1)]
    ax = _axes(ax)
    plane, origin = _plane(states)
    way = (states - origin) @ plane.T
    middle, half = (way.amax(0) + way.amin(0)) / 2, _half(way)
    sides = [torch.linspace(float(m - half), float(m + half), GRID).double() for m in middle]
    a, b = torch.meshgrid(*sides, indexing="xy")
    points = origin + a.reshape(-1, 1) * plane[0] + b.reshape(-1, 1) * plane[1]
    flow = velocity(points.to(path)).detach().double().cpu() @ plane.T
    u, v = flow.nan_to_num(0.0, 0.0, 0.0).T.reshape(2, GRID, GRID)
    if bool(u.any() or v.any()):
        grids: Any = [grid.numpy() for grid in (*sides, u, v)]
        ax.streamplot(*grids, color="0.7", linewidth=0.6, density=0.8, arrowsize=0.7)
    ax.plot(way[:, 0].tolist(), way[:, 1].tolist(), ".-", color="C0", lw=1)
    ax.plot(*way[-1:].T.tolist(), "o", color="C3")
    named = ("z[0]", "z[1]") if states.shape[1] == 2 else ("first direction", "second direction")
    ax.set(title="Phase portrait with the path", xlabel=named[0], ylabel=named[1])
    return ax


def gradient_errors(errors: Tensor, *, ax: Axes | None = None) -> Axes:
    """The relative error of each sample's gradient in rising order.

    Arguments:
        errors: ``[batch]``.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: they have another shape.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(errors, 1, "errors").sort().values
    ax = _axes(ax)
    ax.plot(range(len(values)), values.tolist(), ".", color="C0")
    if bool((values > 0).any()):
        ax.set_yscale("log", nonpositive="mask")
    ax.set(title="Gradient error", xlabel="samples, in order", ylabel="relative error of dL/dx")
    return ax


def start_distances(distance: Tensor, *, ax: Axes | None = None) -> Axes:
    """How far each solve goes from its start: near 0 the model is explicit.

    Arguments:
        distance: ``[batch]``, ``|z* - z0| / |z*|``.
        ax: where to draw; None is a new figure.

    Returns:
        The axes.

    Raises:
        InputError: it has another shape.
        ConfigError: matplotlib is not installed, and no ``ax`` was given.
    """
    values = _values(distance, 1, "distance")
    ax = _axes(ax)
    ax.hist(values.tolist(), bins=30)
    ax.set(title="Distance from the start", xlabel="|z* - z0| / |z*|", ylabel="samples")
    return ax


def _axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(["plots need matplotlib: pip install matplotlib"]) from error
    return pyplot.subplots(layout="constrained")[1]


def _values(tensor: Tensor, ndim: int, name: str, expected: str = "[batch]") -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.ndim != ndim:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{name}: received {found}, expected a tensor {expected}")
    return tensor.detach().double().cpu()


def _whole_ticks(ax: Axes) -> Axes:
    """Ticks at whole numbers alone."""
    ax.locator_params(axis="x", integer=True)
    return ax


def _plane(states: Tensor) -> tuple[Tensor, Tensor]:
    """Two orthonormal directions ``[2, n]``, and a point of the plane ``[n]``."""
    if states.shape[1] == 2:
        return torch.eye(2, dtype=states.dtype), states.new_zeros(2)
    origin = states[-1]
    found = torch.linalg.svd(states - origin, full_matrices=False).Vh[:2]
    return torch.linalg.qr(torch.cat([found, torch.eye(states.shape[1]).double()[:2]]).T)[0].T[
        :2
    ], origin


def _half(way: Tensor) -> float:
    """Half the side of the square that is shown."""
    return max(0.6 * float((way.amax(0) - way.amin(0)).max()), 1e-6)
