"""The regularizers of layers: loss terms that are added to the task's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConfigError, InputError
from implicitcore.options.option import Option
from implicitcore.options.types import Fraction
from implicitcore.solution import SolveResult, Trajectory


def skip_loss(solution: SolveResult) -> Tensor:
    """Mean ``|z - z0|`` over all entries, differentiable in both (Skip DEQ, arXiv 2201.12240)."""
    return _mean(solution.z, solution.start, torch.nn.functional.l1_loss)


def start_loss(solution: SolveResult) -> Tensor:
    """Smooth L1 loss of z0 with the detached z as its target (HomoODE, arXiv 2310.09583)."""
    end = solution.final() if isinstance(solution, Trajectory) else solution
    target = pytree.tree_map(torch.detach, end.z)
    return _mean(solution.start, target, torch.nn.functional.smooth_l1_loss)


def correction_loss(
    criterion: Callable[[Any], Tensor], solution: SolveResult, *, decay: float = 0.8
) -> Tensor:
    """The loss of the solution and of the iterates before it: the fixed-point correction.

    L = l(z) + sum_{k=1}^{K} decay^(K + 1 - k) l(z_k), with the K iterates z_k that the gradient
    strategy kept. A solve of which every part is supervised ends near the target in few steps, and
    more steps do no harm. In validation l(z) alone is the loss.

    Arguments:
        criterion: l, the loss of one state shaped like z, a scalar.
        solution: of a solve with ``iterates`` of its gradient: ``Implicit(iterates=(5, 10))``,
            ``Phantom``, ``Neumann`` or ``Unrolled``. Under each of them an iterate has the gradient
            that z has, at itself.
        decay: gamma, in (0, 1].

    Returns:
        A scalar, with the gradient of every term.

    Raises:
        InputError: the solution has no iterates.
        ConfigError: decay is out of its bounds.

    Example:
        >>> import torch, implicitcore as ic
        >>> weight, x = torch.nn.Linear(4, 4), torch.ones(3, 4)
        >>> layer = ic.ImplicitLayer(
        ...     ic.FixedPoint(lambda z, x: torch.tanh(0.1 * weight(z) + x)),
        ...     solver=ic.Picard(tol=1e-5),
        ...     gradient=ic.Implicit(iterates=(1, 3)),
        ... )
        >>> loss = ic.correction_loss(lambda z: z.square().mean(), layer.solve(x))
        >>> loss.backward()

    Reference:
        Bai, Geng, Savani, Kolter, Deep Equilibrium Optical Flow Estimation, arXiv 2204.08442; the
        default decay is TorchDEQ's, arXiv 2310.18605.
    """
    problems = Option("decay", Fraction).read(decay)[1]
    if problems:
        raise ConfigError(problems)
    iterates = getattr(solution, "iterates", None)
    if iterates is None:
        raise InputError(
            "the solution has no iterates: solve with a gradient strategy that keeps them, such as "
            "Implicit(iterates=(5, 10))"
        )
    leaves, spec = pytree.tree_flatten(iterates)
    rows = zip(*(leaf.unbind(0) for leaf in leaves), strict=True)
    states = [*(pytree.tree_unflatten(row, spec) for row in rows), solution.z]
    weights = (decay**power for power in reversed(range(len(states))))
    terms = [w * criterion(z) for w, z in zip(weights, states, strict=True)]
    return torch.stack(terms).sum()


def _mean(left: Any, right: Any, loss: Any) -> Tensor:
    """The mean loss over all entries of two states."""
    pairs = list(zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True))
    entries = sum(a.numel() for a, _ in pairs)
    total = torch.stack([loss(a, b, reduction="sum") for a, b in pairs]).sum()
    return total / max(entries, 1)
