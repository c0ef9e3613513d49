"""What one solve did, as numbers that any logger takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import ImplicitLayer, Solution, SolveResult, spectral_radius

POWER_STEPS = 20
SEED = 0
Readout = Callable[[Any], Tensor]
"""A state to logits ``[batch, classes]``."""


@torch.no_grad()
def solve_figures(solution: SolveResult) -> dict[str, float]:
    """The figures of a solve; reading them waits for the device once.

    Arguments:
        solution: of a layer; after the backward pass its cost is there too.

    Returns:
        ``evaluations`` of f; ``backward``, vector-Jacobian products and evaluations of f in the
        backward pass so far; ``unconverged`` samples; ``steps``, the mean over the samples;
        ``start_distance``, the mean of ``|z* - z0| / |z*|``; and ``residual``, the largest
        ``|f(z) - z| / |z|``, where there is a residual.

    Example:
        >>> import torch, implicitcore as ic
        >>> from implicitcore_lab.measures import solve_figures
        >>> layer = ic.ImplicitLayer(
        ...     ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard(tol=1e-3)
        ... )
        >>> solve_figures(layer.solve(torch.ones(2, 3)))["start_distance"]
        1.0
    """
    size = norms(solution.z)
    rows = [
        (~solution.converged).sum().float(),
        solution.steps.float().mean(),
        start_distance(solution).mean().float(),
    ]
    if isinstance(solution, Solution):
        rows.append((solution.residual / size).max().float())
    names = ("unconverged", "steps", "start_distance", "residual")
    read = dict(zip(names, torch.stack(rows).tolist(), strict=False))
    backward = solution.backward.vjps + solution.backward.evaluations
    return {"evaluations": float(solution.evaluations), "backward": float(backward), **read}


@torch.no_grad()
def equilibrium_figures(
    layer: ImplicitLayer, x: Any, readout: Readout | None = None, labels: Tensor | None = None
) -> dict[str, float]:
    """How contractive a layer is where its solves end, and what its start alone says.

    It solves once more, and the spectral radius costs some twenty vector-Jacobian products: once an
    epoch, and not each step.

    Arguments:
        layer: the layer.
        x: its input, a batch.
        readout: what classifies a state; z0 is given to it without a solve.
        labels: int64 ``[batch]``, what it should say.

    Returns:
        The figures of :func:`solve_figures`; ``spectral_radius``, the largest over the samples of J
        = df/dz at z*, where there are equilibria; ``explicit_accuracy``, where there is a readout.

    Example:
        >>> import torch, implicitcore as ic
        >>> from implicitcore_lab.measures import equilibrium_figures
        >>> layer = ic.ImplicitLayer(
        ...     ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard(tol=1e-3)
        ... )
        >>> round(equilibrium_figures(layer, torch.ones(2, 3))["spectral_radius"], 6)
        0.5
    """
    solution = layer.solve(x)
    figures = solve_figures(solution)
    if isinstance(solution, Solution):
        device = solution.residual.device
        generator = torch.Generator(device).manual_seed(SEED)
        radii = spectral_radius(layer, solution, x, steps=POWER_STEPS, generator=generator)
        figures["spectral_radius"] = radii.max().item()
    if readout is not None and labels is not None:
        right = readout(solution.start).argmax(1) == labels
        figures["explicit_accuracy"] = right.float().mean().item()
    return figures


def start_distance(solution: SolveResult) -> Tensor:
    """``|z* - z0| / |z*|`` of each sample, ``[batch]``; where z* is zero, 1 unless z0 is zero too.

    The quotient is infinite there, and one sample whose relus are all off would be the whole mean.
    """
    moved = norms(pytree.tree_map(lambda z, z0: z - z0, solution.z, solution.start), floor=False)
    return torch.where(
        norms(solution.z, floor=False) > 0, moved / norms(solution.z), (moved > 0).to(moved.dtype)
    )


def norms(state: Any, *, floor: bool = True) -> Tensor:
    """The 2-norm of each sample of a state, ``[batch]``; above zero where it is divided by."""
    leaves = [leaf.detach().flatten(1).norm(dim=1) for leaf in pytree.tree_leaves(state)]
    size = torch.stack(leaves).norm(dim=0)
    return size.clamp(min=torch.finfo(size.dtype).tiny) if floor else size
