"""The paths to an equilibrium, computed to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from implicitcore import Anderson, HomotopyField, Picard, Tsit5, fixed_point, integrate

POINTS = 120
FLOW_TIME = 12.0
LENGTH, MOST_STEPS, CORRECTIONS = 0.02, 3000, 2
TURNING = 3


@dataclass(frozen=True)
class Cell:
    """f(z, x) = tanh(W z + x) on ``[batch, n]``.

    Attributes:
        weight: W, ``[n, n]``.
    """

    weight: Tensor

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x)."""
        return torch.tanh(z @ self.weight.T + x)


def jacobian(cell: Cell, z: Tensor, x: Tensor) -> Tensor:
    """df/dz, ``[batch, n, n]``."""
    return (1 - cell(z, x) ** 2).unsqueeze(2) * cell.weight


@torch.no_grad()
def draw_paths(
    figure: Figure, one: tuple[Cell, Tensor], hard: Sequence[tuple[Cell, Tensor]]
) -> None:
    """Draw how each way comes to the equilibrium of one cell, and z(s) of hard ones."""
    left, right = figure.subplots(1, 2)
    cell, x = one[0], one[1][:1]
    paths = _paths(cell, x)
    end = paths["the homotopy's flow, z(s)"][-1]
    plane = _plane(torch.cat(list(paths.values())) - end)
    for index, (name, path) in enumerate(paths.items()):
        across, up = ((path - end) @ plane).unbind(1)
        marker = "." if "flow" not in name else ""
        left.plot(across, up, marker=marker, label=name, color=f"C{index}", linewidth=1.2)
    left.plot(0, 0, "k*", markersize=12, label="the equilibrium")
    left.set(
        title="One cell: the ways to its equilibrium",
        xlabel="first principal direction",
        ylabel="second principal direction",
    )
    left.legend(fontsize=8)
    for index, (z, s) in enumerate(_chosen(hard)):
        right.plot(s, z.mean(1), color=f"C{index}", linewidth=1.2)
        right.plot(s[-1:], z[-1:].mean(1), "k*", markersize=9)
    right.set(
        title="Hard cells: zero paths, some turn back in s",
        xlabel="s",
        ylabel="mean of the entries of z(s)",
    )
    right.axvline(1.0, color="k", linewidth=0.6)
    for axes in (left, right):
        axes.grid(alpha=0.3)


def _chosen(hard: Sequence[tuple[Cell, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Some paths that turn back, and one that does not."""
    turning, straight = [], []
    for cell, x in hard:
        for sample in x.split(1):
            path = homotopy_path(cell, sample)
            turns = bool((path[1].diff() < 0).any())
            (turning if turns else straight).append(path)
            if len(turning) >= TURNING and straight:
                return turning[:TURNING] + straight[:1]
    return turning + straight[:1]


def _paths(cell: Cell, x: Tensor) -> dict[str, Tensor]:
    """The points ``[k, n]`` that each way visits."""
    zero = torch.zeros_like(x)
    start = (torch.arange(x.shape[1]) % 2 * 2 - 1).to(x).expand_as(x)
    paths: dict[str, Tensor] = {}
    for name, solver in (("Picard", Picard(tol=1e-8)), ("Anderson", Anderson(tol=1e-8))):
        points: list[Tensor] = []

        def recorded(z: Tensor, x: Tensor, points: list[Tensor] = points) -> Tensor:
            points.append(z[0].clone())
            return cell(z, x)

        fixed_point(recorded, zero, x, solver=solver, on_failure="ignore")
        paths[name] = torch.stack(points)
    flow = integrate(
        lambda t, z, x: cell(z, x) - z,
        zero,
        x,
        times=torch.linspace(0.0, FLOW_TIME, POINTS, dtype=x.dtype),
        solver=Tsit5(rtol=1e-8, atol=1e-10),
    )
    paths["the flow to infinity"] = flow.z[:, 0]
    homotopy = integrate(
        HomotopyField(cell),
        start,
        x,
        times=torch.linspace(0.0, 1.0, POINTS, dtype=x.dtype),
        solver=Tsit5(rtol=1e-8, atol=1e-10),
    )
    paths["the homotopy's flow, z(s)"] = homotopy.z[:, 0]
    return paths


def _plane(points: Tensor) -> Tensor:
    """The two principal directions, ``[n, 2]``."""
    return torch.linalg.svd(points, full_matrices=False).Vh[:2].T


def homotopy_path(cell: Cell, x: Tensor) -> tuple[Tensor, Tensor]:
    """The zero path of H(z, s) from z = 0, s = 0 to s = 1, by its length.

    Short steps along the tangent, each corrected by the least step that solves the linearisation.

    Arguments:
        cell: f.
        x: ``[1, n]``.

    Returns:
        z ``[k, n]`` and s ``[k]``; where the path is longer than so many steps, its beginning.
    """
    n = x.shape[1]
    point = torch.zeros(n + 1, dtype=x.dtype)
    ahead = torch.zeros_like(point)
    ahead[n] = 1.0
    points = [point]
    for _ in range(MOST_STEPS):
        ahead = _tangent(cell, point, x, ahead)
        point = point + LENGTH * ahead
        for _ in range(CORRECTIONS):
            matrix, value = _linearised(cell, point, x)
            point = point - torch.linalg.pinv(matrix) @ value
        if point[n] >= 1:
            before = points[-1]
            points.append(torch.lerp(before, point, (1 - before[n]) / (point[n] - before[n])))
            break
        points.append(point)
    path = torch.stack(points)
    return path[:, :n], path[:, n]


def _linearised(cell: Cell, point: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """dH / d(z, s), ``[n, n + 1]``, and H, ``[n]``, for a = 0."""
    z, s = point[:-1].unsqueeze(0), point[-1]
    fz = cell(z, x)[0]
    by_z = torch.eye(len(fz)).to(fz) - s * jacobian(cell, z, x)[0]
    return torch.cat((by_z, -fz.unsqueeze(1)), 1), z[0] - s * fz


def _tangent(cell: Cell, point: Tensor, x: Tensor, before: Tensor) -> Tensor:
    """The unit tangent that goes on in the direction of the last one."""
    matrix, _ = _linearised(cell, point, x)
    found = torch.linalg.svd(matrix).Vh[-1]
    return found if found @ before >= 0 else -found
