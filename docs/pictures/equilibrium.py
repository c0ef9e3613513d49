"""The picture of the front page, docs/_static/equilibrium.svg.

    python docs/pictures/equilibrium.py

One cell of two numbers, and four ways to its equilibrium.
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import implicitcore as ic

TARGET = Path(__file__).parent.parent / "_static" / "equilibrium.svg"
WEIGHT = torch.tensor([[0.55, -1.1], [1.1, 0.45]], dtype=torch.float64)
X = torch.tensor([[0.6, 0.1]], dtype=torch.float64)
START = torch.tensor([[-0.9, 0.9]], dtype=torch.float64)


def cell(z: Tensor, x: Tensor) -> Tensor:
    """f(z, x) = tanh(W z + x): it expands near its fixed point, where z' = f - z is stable."""
    return torch.tanh(z @ WEIGHT.T + x)


def evaluated(solver: ic.RootSolver, z0: Tensor) -> Tensor:
    """The points at which a solver asks for f, in order, ``[points, 2]``."""
    points = []

    def f(z: Tensor, x: Tensor) -> Tensor:
        points.append(z.detach().clone())
        return cell(z, x)

    ic.fixed_point(f, z0, X, solver=solver, on_failure="ignore")
    return torch.cat(points)


@torch.no_grad()
def draw(target: Path = TARGET) -> dict[str, Tensor]:
    """Write the picture; return the paths, by the name of the way."""
    paths = {
        "Picard": evaluated(ic.Picard(tol=1e-4, max_steps=14), START),
        "Newton": evaluated(ic.Newton(tol=1e-6), START),
    }
    times = torch.linspace(0, 30, 600, dtype=torch.float64)
    flow = ic.integrate(lambda t, z, x: cell(z, x) - z, START, X, times=times, solver=ic.Tsit5())
    paths["flow to the steady state"] = flow.z[:, 0]
    s = torch.linspace(0, 1, 41, dtype=torch.float64)[1:, None]
    zero_path = ic.find_root(
        lambda z, s: s * (cell(z, X) - z) + (1 - s) * (START - z),
        START.expand(len(s), 2),
        s,
        solver=ic.Newton(tol=1e-8),
    )
    paths["homotopy"] = torch.cat((START, zero_path.z))
    equilibrium = ic.fixed_point(cell, START, X, solver=ic.Newton(tol=1e-10)).z[0]

    axis = torch.linspace(-1.1, 1.1, 25, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    field = (cell(grid, X) - grid).reshape(25, 25, 2)
    with mpl.rc_context({"svg.hashsalt": "implicitcore", "svg.fonttype": "path"}):
        figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
        ax.streamplot(
            axis.numpy(),
            axis.numpy(),
            field[..., 0].numpy(),
            field[..., 1].numpy(),
            color="#c8ccd4",
            linewidth=0.7,
            arrowsize=0.7,
            density=1.1,
        )
        styles = ("o--", "s-", "-", "-")
        colors = ("#b0413e", "#2f6f9f", "#2a8c5a", "#8a5fb0")
        for (name, path), style, color in zip(paths.items(), styles, colors, strict=True):
            ax.plot(*path.T.numpy(), style, color=color, label=name, markersize=3.5, linewidth=1.6)
        ax.plot(*equilibrium.numpy(), "*", color="black", markersize=13, label="z = f(z, x)")
        ax.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
        ax.legend(loc="lower left", fontsize=8)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return {**paths, "equilibrium": equilibrium[None]}


if __name__ == "__main__":
    for name, path in draw().items():
        print(f"{name}: {len(path)} points, ends at {path[-1].tolist()}")
